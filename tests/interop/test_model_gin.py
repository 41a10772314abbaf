"""model.gin beside a converted checkpoint."""

import pathlib

import pytest

from t5lite import configurables
from t5lite.core.errors import UserError
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.interop.model_gin import model_gin
from t5lite.models.architectures import EncoderDecoder
from t5lite.training.checkpoint_names import open_checkpoint
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_run_with_model_gin_has_the_model_and_special_tokens(tmp_path):
    model = EncoderDecoder(small.config(start_token=5, dtype="bfloat16", vocab_size=400))
    special = SpecialTokens(eos_ids=(2, 7), pad_id=3, forced_bos_id=9, added_tokens={"<sep>": 384})
    vocabulary = ByteVocabulary(special=special)
    (tmp_path / "model.gin").write_text(model_gin(model, vocabulary, ""))
    files = [str(ROOT / "gin" / "run" / "quickstart.gin"), str(tmp_path / "model.gin")]
    (run,) = configurables.load(files, [f"MODEL_DIR='{tmp_path}'"], [], "train")
    assert run.task.vocabulary == vocabulary
    for field in ("vocab_size", "embed_dim", "start_token", "mlp_activations"):
        assert getattr(run.model.config, field) == getattr(model.config, field)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "checkpoint '.*' holds no checkpoint; name a MODEL_DIR or"),
        (
            ["config.json"],
            r"checkpoint '(.*)' is a Hugging Face folder; run t5lite convert --input=\1",
        ),
        (["checkpoint"], "is a T5X checkpoint; run t5lite convert --input="),
        (["adapter_config.json"], "is an adapter of PEFT; run t5lite convert .* --base=BASE"),
    ],
)
def test_directory_that_is_not_a_checkpoint_is_described(files, message, tmp_path):
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=message):
        open_checkpoint(str(tmp_path))


def test_missing_checkpoint_is_not_found(tmp_path):
    with pytest.raises(UserError, match="not found; name a MODEL_DIR or"):
        open_checkpoint(str(tmp_path / "nowhere"))


def test_suffix_names_a_checkpoint_of_a_run(monkeypatch, tmp_path):
    for step in ("5", "10"):
        for part in ("state", "about"):
            (tmp_path / "checkpoints" / step / part).mkdir(parents=True)
    monkeypatch.setattr(StoredCheckpoints, "steps", lambda _: [5, 10])
    monkeypatch.setattr(StoredCheckpoints, "best", lambda _: 5)
    for which, step in (("best", 5), ("latest", 10), ("5", 5)):
        assert open_checkpoint(f"{tmp_path}:{which}")[1] == step
    with pytest.raises(UserError, match="has no checkpoint '7'; it has 5, 10"):
        open_checkpoint(f"{tmp_path}:7")


def test_file_and_checkpoints_folder_are_described(tmp_path):
    for part in ("state/_METADATA", "about/metadata"):
        path = tmp_path / "checkpoints" / "5" / part
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "metrics.jsonl").touch()
    for name, message in (
        ("metrics.jsonl", "is a file; name a MODEL_DIR or"),
        ("checkpoints", f"is the checkpoints folder of a run; name {tmp_path} for the latest"),
    ):
        with pytest.raises(UserError, match=message):
            open_checkpoint(str(tmp_path / name))
