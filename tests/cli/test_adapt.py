"""Decoder-only checkpoints adapted with the command, and trained."""

import json
import pathlib

import pytest

from tests import small
from tests.cli.progress import without_progress

DECODER = pathlib.Path(__file__).parent.parent / "golden" / "huggingface" / "qwen3"

DECODER_ONLY = (
    "--gin_file=gin/run/quickstart.gin",
    "--gin_file=gin/models/decoder_only_base.gin",
    "--gin_file=gin/objectives/causal.gin",
    "--gin.BATCH_SIZE=8",
    "--gin.T5Config.vocab_size=384",
    "--gin.T5Config.embed_dim=16",
    "--gin.T5Config.mlp_dim=16",
    "--gin.T5Config.num_heads=2",
    "--gin.T5Config.head_dim=8",
    "--gin.T5Config.num_encoder_layers=0",
    "--gin.T5Config.num_decoder_layers=1",
    "--gin.T5Config.positions=rotary",
    "--gin.T5Config.dtype=float32",
    "--gin.Cosine.warmup_steps=2",
    "--gin.evaluate.batch_size=64",
    "--gin.Causal.targets_length=24",
    "--gin.train.show_examples=0",
    "--gin.STEPS=2",
)


@pytest.fixture(scope="module")
def decoders(run_t5lite, make_once):
    """Two decoder-only runs of two steps, of different widths, in `wide` and `narrow`."""

    def train(folder):
        for name, more in (("wide", ()), ("narrow", ("--gin.T5Config.embed_dim=8",))):
            run = (*DECODER_ONLY, *more, f"--gin.MODEL_DIR={folder / name}")
            code, _, err = run_t5lite("train", *run)
            assert code == 0, err

    return make_once("decoders", train)


def parameters(command, checkpoint):
    code, out, _ = command("inspect", f"--checkpoint={checkpoint}", "--json")
    assert code == 0
    return {row["name"]: tuple(row["shape"]) for row in json.loads(out)["parameters"]}


@pytest.mark.proof
@pytest.mark.parametrize("form", ["encoder_decoder", "merged_encoder_decoder"])
def test_an_adapted_run_trains_evaluates_and_infers(form, decoders, command, tmp_path):
    adapted, mine = tmp_path / "adapted", tmp_path / "mine"
    arguments = (f"--input={decoders}/wide", f"--output={adapted}", f"--adapt={form}")
    code, out, err = command("convert", *arguments)
    assert (code, without_progress(err)) == (0, "")
    assert f"{decoders}/wide: t5lite, EncoderDecoder" in out
    assert (adapted / "checkpoints" / "0").is_dir()
    names = parameters(command, adapted)
    has_cross = any("encoder_decoder_attention" in name for name in names)
    assert has_cross == ("encoder_token_embedder/embedding" in names)
    assert has_cross == (form == "encoder_decoder")
    run = (
        *(*small.QUICKSTART, f"--gin_file={adapted}/model.gin", f"--gin.MODEL_DIR={mine}"),
        f"--gin.train.initial_checkpoint={adapted}/checkpoints/0",
        *("--gin.T5Config.dtype=float32", "--gin.STEPS=2", "--gin.train.show_examples=1"),
    )
    # `model.gin` comes after the sizes of the quickstart's model, which it replaces.
    run = [flag for flag in run if not flag.startswith("--gin.T5Config.num_")]
    code, _, err = command("train", *run)
    assert code == 0, err
    code, out, err = command("eval", f"--checkpoint={mine}", "--json")
    assert code == 0, err
    (scores,) = json.loads(out)
    assert scores["step"] == 2
    questions, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    questions.write_text('{"inputs": "a<extra_id_0>c"}\n')
    flags = (f"--checkpoint={mine}", f"--input={questions}", f"--output={answers}")
    code, _, err = command("infer", *flags)
    assert code == 0, err
    assert "prediction" in json.loads(answers.read_text())


@pytest.mark.proof
def test_an_unbalanced_pair_is_written_with_fresh_cross_attention(decoders, command, tmp_path):
    output = tmp_path / "pair"
    code, out, err = command(
        *("convert", f"--input={decoders}/narrow", f"--adapt_encoder={decoders}/wide"),
        *("--adapt=encoder_decoder", f"--output={output}", "--gin.convert.seed=4"),
    )
    assert (code, without_progress(err)) == (0, "")
    assert (
        "note: cross-attention is initialized with convert.seed=4: the encoder's width is 16" in out
    )
    names = parameters(command, output)
    assert names["encoder/layers/attention/query/kernel"] == (1, 16, 2, 8)
    assert names["decoder/layers/encoder_decoder_attention/key/kernel"] == (1, 16, 2, 8)
    assert names["decoder/layers/encoder_decoder_attention/query/kernel"] == (1, 8, 2, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapt_encoder=x"], "--adapt_encoder needs --adapt=encoder_decoder, got none"),
        (["--adapt=decoder"], "<encoder_decoder|merged_encoder_decoder>"),
        (["--adapt=encoder_decoder", "--adapt_encoder=x"], "--adapt_encoder=x does not exist"),
        (
            ["--adapt=encoder_decoder", "--gin.convert.optimizer_state=True"],
            "convert.optimizer_state is for T5X to t5lite, got a conversion of Hugging Face to t5",
        ),
        (["--gin.convert.seed=4"], "convert.seed is for --adapt, got a conversion of Hugging Face"),
        (["--adapt=encoder_decoder", "--gin.convert.seed=-1"], "convert.seed must be a whole num"),
        (
            ["--adapt=merged_encoder_decoder", f"--adapt_encoder={DECODER}"],
            "--adapt=merged_encoder_decoder makes both stacks from --input",
        ),
    ],
)
def test_mistake_prints_one_line_and_leaves_no_output(arguments, message, command, tmp_path):
    output = tmp_path / "b"
    code, _, err = command("convert", f"--input={DECODER}", f"--output={output}", *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not output.exists()


def test_an_encoder_decoder_is_rejected_by_name(trained, command, tmp_path):
    flags = (f"--input={trained}", f"--output={tmp_path}/b", "--adapt=encoder_decoder")
    code, _, err = command("convert", *flags)
    assert code == 2
    assert "--input must be a decoder-only model, got EncoderDecoder" in err
    assert not pathlib.Path(f"{tmp_path}/b").exists()
