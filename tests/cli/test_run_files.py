"""Every command takes every run's config.gin, wherever the run has moved."""

import math
import pathlib
import shutil
import types

import pytest

from t5lite import configurables
from t5lite.cli import infer, run_files
from t5lite.cli.documents import json_document
from t5lite.cli.selection import ChosenCheckpoint
from t5lite.core.errors import UserError
from t5lite.data.text.vocabularies import SentencePieceVocabulary
from t5lite.inference.requests import Inference
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.description import describe
from t5lite.public_names import ROOTS
from tests import small

ROOT = pathlib.Path(__file__).parent.parent.parent
RUNS = sorted(
    path
    for path in (*ROOT.glob("gin/run/*.gin"), *ROOT.glob("experiments/*/*.gin"))
    if path.stem not in ROOTS
)
# The roots that each command builds from a run's config.gin.
COMMAND_ROOTS = {
    "train": ("train", "evaluate"),
    "eval": ("train", "evaluate"),
    "infer": ("train", "infer"),
    "plan": ("train",),
    "inspect": ("train",),
    "data": ("train",),
    "convert": ("convert",),
}


def flags(*files):
    return types.SimpleNamespace(gin_file=[str(file) for file in files], gin_search_paths=[])


@pytest.fixture(scope="module")
def config_gin(tmp_path_factory):
    """Returns the config.gin that `train` writes for a run file."""
    folder = tmp_path_factory.mktemp("configs")

    def write(path):
        config = folder / f"{path.parent.name}_{path.name}"
        if not config.exists():
            bindings = ["MODEL_DIR=run"]
            run_files.load_roots(flags(path), bindings, "train", "evaluate", needs_vocabulary=False)
            config.write_text(configurables.resolved_text())
        return config

    return write


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_command_takes_the_config_of_every_run(path, config_gin):
    config = config_gin(path)
    run = None
    for roots in dict.fromkeys(COMMAND_ROOTS.values()):
        built = run_files.load_roots(flags(config), [], *roots, needs_vocabulary=False)
        if roots[0] == "train":
            run = run or built[0]
            assert built[0] == run


VOCABULARY_RUN = """
include 'gin/run/quickstart.gin'
Task.vocabulary = @SentencePieceVocabulary()
SentencePieceVocabulary.path = '{path}'
T5Config.vocab_size = 1000
"""


def test_a_run_uses_its_own_copy_of_a_vocabulary_that_has_moved(tmp_path, sentencepiece_model):
    original = tmp_path / "elsewhere.model"
    shutil.copyfile(sentencepiece_model, original)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config = run_dir / "config.gin"
    config.write_text(VOCABULARY_RUN.format(path=original))
    (run,) = run_files.load_roots(flags(config), [], "train")
    run_files.keep_vocabulary(run.task.vocabulary, run_dir)
    original.unlink()
    moved = tmp_path / "moved"
    run_dir.rename(moved)
    (again,) = run_files.load_roots(flags(moved / "config.gin"), [], "train")
    assert again.task.vocabulary.fingerprint == run.task.vocabulary.fingerprint
    about = {"vocabulary": run.task.vocabulary.describe()}
    saved = run_files.saved_vocabulary(about, moved)
    assert saved.fingerprint == run.task.vocabulary.fingerprint
    # A copy is never overwritten: the checkpoints belong to it.
    (moved / run_files.VOCABULARY_COPY).write_text("precious")
    run_files.keep_vocabulary(SentencePieceVocabulary(path=sentencepiece_model), moved)
    assert (moved / run_files.VOCABULARY_COPY).read_text() == "precious"


def test_plan_and_inspect_need_no_vocabulary_file_and_others_do(tmp_path):
    config = tmp_path / "run.gin"
    config.write_text(VOCABULARY_RUN.format(path="nowhere.model"))
    (run,) = run_files.load_roots(flags(config), [], "train", needs_vocabulary=False)
    assert run.model.config.vocab_size == 1000
    with pytest.raises(UserError, match=r"'nowhere.model' not found; this command needs the voc"):
        run.task.vocabulary.encode("text")
    with pytest.raises(UserError, match=r"SentencePieceVocabulary.path .*nowhere.model"):
        run_files.load_roots(flags(config), [], "train")


def test_infer_names_the_flags_for_a_vocabulary_that_is_gone(tmp_path, sentencepiece_model):
    given = SentencePieceVocabulary(path=sentencepiece_model)
    about = {
        "model": describe(EncoderDecoder(small.config())),
        "vocabulary": {**given.describe(), "path": "/elsewhere/spiece.model"},
        "vocabulary_fingerprint": given.fingerprint,
    }
    checked = []

    class Described(ChosenCheckpoint):
        path = str(tmp_path / "checkpoints" / "3")
        check_vocabulary = staticmethod(checked.append)

    chosen = object.__new__(Described)
    object.__setattr__(chosen, "about", about)
    with pytest.raises(UserError, match=r"spiece.model.*; name its file by --gin.infer.vocabul"):
        infer._model_and_vocabulary(None, Inference(), chosen)
    # The fingerprint decides whether another file is the same vocabulary.
    _, vocabulary = infer._model_and_vocabulary(None, Inference(vocabulary=given), chosen)
    assert (vocabulary, checked) == (given, [given])


def test_json_documents_hold_null_for_numbers_that_are_not_finite():
    document = {"loss": math.nan, "scores": [1.5, -math.inf, {"f1": math.inf}], "step": 3}
    assert json_document(document) == (
        '{"loss": null, "scores": [1.5, null, {"f1": null}], "step": 3}'
    )
