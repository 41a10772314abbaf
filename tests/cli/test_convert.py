"""Checkpoints converted to Hugging Face and back with the command."""

import functools
import json
import pathlib

import numpy as np
import pytest

from t5lite.core.lazy import LazyArray, by_name
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.interop.foreign import Foreign
from t5lite.interop.huggingface import write_huggingface
from t5lite.models.classifier import Classes
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from tests import small
from tests.cli.progress import without_progress
from tests.cli.test_commands import SMALL

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface"


def scores(out):
    (result,) = json.loads(out)
    of_the_checkpoint = ("checkpoint", "step", "saved_at")
    return {name: value for name, value in result.items() if name not in of_the_checkpoint}


def test_run_scores_the_same_after_conversion_to_hugging_face_and_back(
    t5lite, command, trained, tmp_path
):
    run, there, back = (str(trained), *(str(tmp_path / name) for name in ("there", "back")))
    code, out, err = t5lite("convert", f"--input={run}", f"--output={there}", "--to=huggingface")
    assert (code, without_progress(err)) == (0, "")
    assert "t5lite, EncoderDecoder of the family t5" in out
    files = {path.name for path in pathlib.Path(there).iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer_config.json",
    }
    assert {path.stat().st_mode & 0o777 for path in pathlib.Path(there).iterdir()} == {0o644}
    code, out, err = command("convert", f"--input={there}", f"--output={back}")
    assert (code, without_progress(err)) == (0, "")
    assert "Hugging Face, EncoderDecoder of the family " in out
    before = command("eval", *SMALL, f"--gin.MODEL_DIR={run}", "--json")
    after = command(
        *("eval", *SMALL, f"--gin_file={back}/model.gin", "--json"),
        *(f"--checkpoint={back}/checkpoints/0", f"--gin.MODEL_DIR={tmp_path}/other"),
    )
    assert scores(before[1]) == scores(after[1])
    # It is where a run may start, and no run.
    code, _, err = command("train", *SMALL, f"--gin.MODEL_DIR={back}")
    assert code == 2
    assert "contains a converted checkpoint and no run; use another MODEL_DIR" in err


def test_inspect_describes_a_run_and_a_checkpoint(t5lite, command, tmp_path):
    code, out, _ = t5lite("inspect", *SMALL, "--json")
    assert code == 0
    report = json.loads(out)
    rows = {row["name"]: row for row in report["parameters"]}
    query = rows["encoder/layers/attention/query/kernel"]
    assert query["shape"] == [1, 16, 2, 8]
    assert query["axes"] == ["layers", "embed", "heads", "kv"]
    assert (query["parameters"], query["bytes"], query["bytes_per_device"]) == (256, 1024, 1024)
    # 1 / sqrt(16 * 8), where T5 applies the factor that others divide scores by.
    assert query["initializer"] == "normal, std 0.0884"
    assert report["batch_size"] == 8
    assert report["train_flops_per_step"] > 0
    assert report["transformers"] == {"name": "T5ForConditionalGeneration", "family": "t5"}

    output = f"{tmp_path}/c"
    code, out, _ = command("convert", f"--input={GOLDEN}/ul2", f"--output={output}")
    assert code == 0
    code, out, _ = command("inspect", f"--checkpoint={output}")
    assert code == 0
    assert "decoder/layers/mlp/wi_0/kernel" in out
    assert "2 layers, 14 embed, 22 mlp" in out
    assert "transformers has T5ForConditionalGeneration for this model, of the family t5" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input=a"], "convert needs --output=FOLDER"),
        (["--input=nowhere", "--output=b"], "--input=nowhere does not exist"),
        ([f"--input={GOLDEN}", "--output=b"], "must be a Hugging Face folder (config.json"),
        ([f"--input={GOLDEN}/ul2", "--output=gin"], "--output=gin exists"),
        ([f"--input={GOLDEN}/ul2", "--output=b", "--to=torch"], "<t5lite|huggingface|peft>"),
        (
            [f"--input={GOLDEN}/ul2", "--output=b", "--gin.convert.dtype=float16"],
            "convert.dtype is unknown: got 'float16'; did you mean",
        ),
        (
            [f"--input={GOLDEN}/ul2", "--output=b", "--gin.convert.mesh_=1"],
            "convert has no parameter 'mesh_'; did you mean 'mesh'",
        ),
    ],
)
def test_mistake_prints_one_line_and_leaves_no_output(arguments, message, command):
    code, _, err = command("convert", *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not pathlib.Path("b").exists()


@pytest.mark.proof
def test_classifier_of_hugging_face_is_converted_trained_and_evaluated(command, data_dir, tmp_path):
    names = ("cat", "dog")
    classes = Classes(count=2, per_token=False, pooling="last", has_dense=True, names=names)
    model = EncoderDecoderClassifier(small.config(tied_logits=True, num_encoder_layers=1), classes)
    lazy = {
        name: LazyArray(array.shape, np.dtype(np.float32), functools.partial(np.asarray, array))
        for name, array in by_name(small.params(model)).items()
    }
    there, run = tmp_path / "there", tmp_path / "run"
    there.mkdir()
    foreign = Foreign(model=model, params=lazy, vocabulary=ByteVocabulary())
    write_huggingface(foreign, there, np.dtype(np.float32))
    code, out, err = command("convert", f"--input={there}", f"--output={tmp_path}/back")
    assert (code, without_progress(err)) == (0, "")
    assert "Hugging Face, EncoderDecoderClassifier" in out
    code, out, _ = command("inspect", f"--checkpoint={tmp_path}/back")
    assert code == 0
    assert "classifier/dense/kernel" in out
    lines = [json.dumps({"text": f"a {name}", "kind": name}) for name in names * 20]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    files = dict.fromkeys(("train", "validation"), f"{tmp_path}/a.jsonl")
    flags = [
        "--gin_file=gin/run/quickstart.gin",
        f"--gin_file={tmp_path}/back/model.gin",
        "--gin_file=gin/objectives/classification_encoder_decoder.gin",
        f"--gin.MODEL_DIR={run}",
        f"--gin.train.initial_checkpoint={tmp_path}/back/checkpoints/0",
        *("--gin.STEPS=4", "--gin.BATCH_SIZE=8", "--gin.Cosine.warmup_steps=2"),
        "--gin.T5Config.dtype=float32",
        "--gin.Task.source=@FileSource()",
        f"--gin.FileSource.files={files}",
        f"--gin.FileSource.data_dir={data_dir}",
        "--gin.FileSource.fields=('text', 'kind')",
        *("--gin.Task.inputs='{text}'", "--gin.Task.targets='{kind}'"),
        "--gin.Classification.inputs_length=16",
        f"--gin.Classification.classes={[*names]}",
    ]
    code, _, err = command("train", *flags)
    assert code == 0, err
    code, out, err = command("eval", *flags, "--json")
    assert code == 0, err
    (result,) = json.loads(out)
    assert result["step"] == 4
    assert 0 <= result["accuracy_fraction"] <= 1
    # Its classes have other numbers.
    code, _, err = command("train", *flags, f"--gin.Classification.classes={[*names[::-1]]}")
    assert code == 2
    assert "Classification.classes must be the model's Classes.names" in err
    code, out, err = command(
        "convert", f"--input={run}", f"--output={tmp_path}/c", "--to=huggingface"
    )
    assert (code, without_progress(err)) == (0, "")
    written = json.loads((tmp_path / "c" / "config.json").read_text())
    assert written["id2label"] == {"0": "cat", "1": "dog"}
