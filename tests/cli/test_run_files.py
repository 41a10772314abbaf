"""Every command takes every run's config.gin, wherever the run has moved."""

import math
import pathlib
import shutil
import types

import pytest
from sentencepiece import sentencepiece_model_pb2

from t5lite import configurables
from t5lite.cli import infer, run_files
from t5lite.cli.documents import json_document
from t5lite.cli.selection import ChosenCheckpoint
from t5lite.core.errors import Unavailable, UserError
from t5lite.data.text.vocabularies import SentencePieceVocabulary
from t5lite.inference.requests import Inference
from t5lite.interop.model_gin import model_gin
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.description import describe
from t5lite.public_names import ROOTS
from tests import small
from tests.interop.library_tokenizers import folder_of

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


@pytest.fixture
def other_model(sentencepiece_model, tmp_path):
    """Another vocabulary: the same pieces with other scores."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(pathlib.Path(sentencepiece_model).read_bytes())
    for piece in model.pieces[3:]:
        piece.score -= 1.0
    path = tmp_path / "other.model"
    path.write_bytes(model.SerializeToString())
    return path


def start_run(folder, vocabulary_path):
    """Writes what `train` does at the start of a run, and returns its vocabulary."""
    folder.mkdir()
    run_file = folder.parent / "run.gin"
    run_file.write_text(VOCABULARY_RUN.format(path=vocabulary_path))
    (run,) = run_files.load_roots(flags(run_file), [f"MODEL_DIR={folder}"], "train")
    run_files.keep_vocabulary(run.task.vocabulary, folder)
    (folder / "config.gin").write_text(run_files.run_config(run.task.vocabulary))
    return run.task.vocabulary


@pytest.mark.parametrize("at_old_path", ["nothing", "another"])
def test_a_run_uses_its_own_copy_of_the_vocabulary_first(
    at_old_path, tmp_path, sentencepiece_model, other_model
):
    original = tmp_path / "elsewhere.model"
    shutil.copyfile(sentencepiece_model, original)
    vocabulary = start_run(tmp_path / "run", original)
    (tmp_path / "run").rename(tmp_path / "moved")
    original.unlink()
    if at_old_path == "another":
        shutil.copyfile(other_model, original)
        (tmp_path / "run").mkdir()
        shutil.copyfile(other_model, tmp_path / "run" / run_files.VOCABULARY_COPY)
    config = tmp_path / "moved" / "config.gin"
    (again,) = run_files.load_roots(flags(config), [], "train")
    assert again.task.vocabulary.fingerprint == vocabulary.fingerprint
    assert pathlib.Path(again.task.vocabulary.path) == config.parent / run_files.VOCABULARY_COPY
    saved = run_files.saved_vocabulary({"vocabulary": vocabulary.describe()}, config.parent)
    assert saved.fingerprint == vocabulary.fingerprint
    # What is bound on the command line comes first.
    own = f"SentencePieceVocabulary.path={other_model}"
    (bound,) = run_files.load_roots(flags(config), [own], "train")
    assert bound.task.vocabulary.path == str(other_model)


def test_a_run_keeps_a_copy_of_a_tokenizer_json(tmp_path):
    original = folder_of("llama3", tmp_path / "given") / "tokenizer.json"
    text = VOCABULARY_RUN.replace("SentencePiece", "Tokenizers")
    run_file = tmp_path / "run.gin"
    run_file.write_text(text.format(path=original) + "SpecialTokens.eos_ids = [1502]\n")
    folder = tmp_path / "first"
    folder.mkdir()
    special = "TokenizersVocabulary.special=@SpecialTokens()"
    bindings = [f"MODEL_DIR={folder}", "T5Config.vocab_size=1700", special]
    bindings.append("TokenizersVocabulary.num_sentinels=100")
    (run,) = run_files.load_roots(flags(run_file), bindings, "train")
    vocabulary = run.task.vocabulary
    run_files.keep_vocabulary(vocabulary, folder)
    (folder / "config.gin").write_text(run_files.run_config(vocabulary))
    folder.rename(tmp_path / "moved")
    original.unlink()
    config = tmp_path / "moved" / "config.gin"
    (again,) = run_files.load_roots(flags(config), [], "train")
    assert again.task.vocabulary.fingerprint == vocabulary.fingerprint
    assert again.task.vocabulary.encode("the").tolist() == vocabulary.encode("the").tolist()
    saved = run_files.saved_vocabulary({"vocabulary": vocabulary.describe()}, config.parent)
    assert saved.fingerprint == vocabulary.fingerprint
    config.with_name(run_files.VOCABULARY_COPY).unlink()
    with pytest.raises(UserError, match="TokenizersVocabulary.path .* is not a file"):
        run_files.load_roots(flags(config), [], "train")
    run_files.load_roots(flags(config), [], "train", needs_vocabulary=False)


def test_the_copy_is_found_from_an_include(tmp_path, sentencepiece_model):
    vocabulary = start_run(tmp_path / "it's a \\ run", sentencepiece_model)
    outer = tmp_path / "outer.gin"
    outer.write_text(f"include {str(tmp_path / 'it')!r}\n")
    (tmp_path / "it").write_bytes((tmp_path / "it's a \\ run" / "config.gin").read_bytes())
    shutil.copyfile(sentencepiece_model, tmp_path / run_files.VOCABULARY_COPY)
    (again,) = run_files.load_roots(flags(outer), [], "train")
    assert again.task.vocabulary.fingerprint == vocabulary.fingerprint
    quoted = tmp_path / "it's a \\ run" / "config.gin"
    (again,) = run_files.load_roots(flags(quoted), [], "train")
    assert pathlib.Path(again.task.vocabulary.path).parent == quoted.parent


def test_a_converted_folder_that_is_moved_uses_its_own_vocabulary(
    tmp_path, sentencepiece_model, other_model
):
    first = tmp_path / "first"
    first.mkdir()
    vocabulary = SentencePieceVocabulary(path=sentencepiece_model)
    shutil.copyfile(sentencepiece_model, first / run_files.VOCABULARY_COPY)
    model = EncoderDecoder(small.config(vocab_size=vocabulary.size))
    text = model_gin(model, vocabulary, run_files.COPY_BESIDE)
    (first / run_files.MODEL_FILE).write_text(text)
    first.rename(tmp_path / "second")
    first.mkdir()
    shutil.copyfile(other_model, first / run_files.VOCABULARY_COPY)
    # From a run file that includes it, too.
    outer = tmp_path / "own.gin"
    base = ROOT / "gin" / "run" / "quickstart.gin"
    moved = tmp_path / "second" / run_files.MODEL_FILE
    outer.write_text(f"include '{base}'\ninclude '{moved}'\n")
    for files in ((base, moved), (outer,)):
        (run,) = run_files.load_roots(flags(*files), ["MODEL_DIR=run"], "train")
        assert run.task.vocabulary.fingerprint == vocabulary.fingerprint
        assert pathlib.Path(run.task.vocabulary.path).parent == moved.parent


def test_the_original_of_an_earlier_release_comes_before_the_copy(tmp_path, sentencepiece_model):
    start_run(tmp_path / "run", sentencepiece_model)
    config = tmp_path / "run" / "config.gin"
    config.write_text(VOCABULARY_RUN.format(path=tmp_path / "gone.model"))
    (run,) = run_files.load_roots(flags(config), [], "train")
    assert pathlib.Path(run.task.vocabulary.path).parent == config.parent
    # Any other gin file beside a copy names what it means.
    config.rename(tmp_path / "run" / "own.gin")
    with pytest.raises(UserError, match="gone.model' is not a file"):
        run_files.load_roots(flags(tmp_path / "run" / "own.gin"), [], "train")


def test_a_copy_of_another_vocabulary_is_kept_and_an_error(
    tmp_path, sentencepiece_model, other_model
):
    start_run(tmp_path / "run", sentencepiece_model)
    copy = tmp_path / "run" / run_files.VOCABULARY_COPY
    before = copy.read_bytes()
    run_files.keep_vocabulary(SentencePieceVocabulary(path=sentencepiece_model), copy.parent)
    with pytest.raises(UserError, match="must be the run's vocabulary .*other.model, got another"):
        run_files.keep_vocabulary(SentencePieceVocabulary(path=str(other_model)), copy.parent)
    assert copy.read_bytes() == before


def test_of_two_processes_that_start_a_run_one_keeps_its_vocabulary(
    tmp_path, sentencepiece_model, other_model, monkeypatch
):
    copy_file = shutil.copyfile
    other = SentencePieceVocabulary(path=str(other_model))

    def start_other(source, target):
        monkeypatch.undo()
        with pytest.raises(Unavailable, match="is being trained by process"):
            run_files.keep_vocabulary(other, tmp_path)
        copy_file(source, target)

    monkeypatch.setattr(shutil, "copyfile", start_other)
    run_files.keep_vocabulary(SentencePieceVocabulary(path=sentencepiece_model), tmp_path)
    copy = tmp_path / run_files.VOCABULARY_COPY
    assert copy.read_bytes() == pathlib.Path(sentencepiece_model).read_bytes()


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
