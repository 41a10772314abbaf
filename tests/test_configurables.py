import gzip
import pathlib
import re

import pytest
import sentencepiece

from t5lite import configurables
from t5lite.core.errors import UserError
from t5lite.parallel.mesh import Mesh
from t5lite.public_names import ROOTS

QUICKSTART = ["gin/run/quickstart.gin"]
ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = pathlib.Path(__file__).parent / "golden"
RUN_FILES = sorted(ROOT.glob("gin/run/*.gin")) + sorted(ROOT.glob("experiments/*/*.gin"))


def load(*bindings, files=QUICKSTART, roots=("train",)):
    return configurables.load(files, bindings, [], *roots)[0]


def test_a_value_that_is_no_literal_is_a_string():
    run = load("MODEL_DIR=/tmp/some where", "train.eval_split=test")
    assert (run.model_dir, run.eval_split) == ("/tmp/some where", "test")


def test_later_files_and_flags_win(tmp_path):
    later = tmp_path / "later.gin"
    later.write_text("STEPS = 7\nBATCH_SIZE = 3\n")
    run = load("BATCH_SIZE=5", files=[*QUICKSTART, str(later)])
    assert (run.total_steps, run.batch_size) == (7, 5)


def test_parts_that_no_file_names_can_be_bound():
    run = load("Mesh.fsdp=4", "CrossEntropy.z_loss=0.5")
    assert run.mesh == Mesh(fsdp=4)
    assert run.loss.z_loss == 0.5


def test_any_optax_optimizer_is_had_without_code():
    run = load(
        "train.optimizer=@optax.lamb()",
        "optax.lamb.learning_rate=0.01",
        "optax.lamb.weight_decay=0.1",
    )
    assert run.optimizer.factory.__name__ == "lamb"
    assert run.optimizer.numbers["weight_decay"] == 0.1


def test_the_resolved_text_builds_the_same_run_on_its_own(tmp_path):
    run = load("STEPS=11", "AdamW.b1=0.8", "MODEL_DIR=/tmp/x")
    text = configurables.resolved_text()
    (tmp_path / "config.gin").write_text(text)
    again = load(files=[str(tmp_path / "config.gin")])
    assert again == run
    assert configurables.resolved_text() == text
    changed = load("STEPS=12", files=[str(tmp_path / "config.gin")])
    assert changed.total_steps == 12


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("trian.seed=1", "'trian' is not a name that gin can bind; did you mean 'train'?"),
        ("train.sede=1", "train has no parameter 'sede'; did you mean 'seed'?"),
        ("STPES=1", "STPES binds nothing: train uses no such macro; did you mean 'STEPS'?"),
        ("Lion.b1=0.5", "Lion.b1 binds nothing: train uses no such parameter"),
        ("train.seed=%SED", "macro SED is used and not defined"),
        ("train.seed=ten", "train.seed must be int, got 'ten'"),
        ("train.max_gradient_norm=big", "train.max_gradient_norm must be a number, got 'big'"),
        (
            "train.optimizer=@Adamw()",
            "'Adamw' is not a name that gin can bind; did you mean 'AdamW'",
        ),
        ("train.optimizer=AdamW", "train.optimizer must be Optimizer, got 'AdamW'; an object is"),
        ("train.optimizer=@AdamW", "train.optimizer must be Optimizer, got function; an object"),
        (
            "Task.objective=Causal",
            "Task.objective must be TextObjective or PairObjective, got 'Causal'; an object is",
        ),
        ("T5Config.mlp_activations=5", "T5Config.mlp_activations must be "),
        ("T5Config.mlp_activations=()", "must name at least one activation"),
        ("SEED=3000000000", "train.seed must be in "),
        ("MODEL_DIR=", "train.model_dir must be a local folder, got ''"),
        ("STEPS=%STEPS", "a macro stands for itself"),
        ("AdamW.nesterov=false", "AdamW.nesterov must be True or False, got 'false'"),
        ("train.max_gradient_norm=[1.0]", r"train.max_gradient_norm must be a number, got \[1.0\]"),
        ("CrossEntropy.z_loss=[1.0]", r"CrossEntropy.z_loss must be a number, got \[1.0\]"),
        ("MODEL_DIR=gs://bucket/run", "train.model_dir must be a local folder"),
        ("SpanCorruption.mean_noise_span_length=0.5", "must be at least 1 token, got 0.5"),
        ("Task.targets={txt", "Task.targets '{txt' must be a template: expected '}'"),
        ("Task.targets=to {0}", "must name fields plainly, as in {text}, got {0}"),
        ("Task.inputs={text}", "Task.inputs must be None for SpanCorruption"),
        ("Task.preprocessors=['lowercas']", "did you mean 'lowercase'"),
        ("Task.metrics=['exact_mach']", "Task.metrics has no 'exact_mach'; did you mean 'exact_m"),
        ("Task.postprocessors=['lowr']", "Task.postprocessors has no 'lowr'"),
        ("train.skip_batches=(5, 9)", r"as in \[\(10, 12\)\], got \(5, 9\)"),
        ("Task.preprocessors=lowercase", "Task.preprocessors must be list, got 'lowercase'"),
        ("train.skip_batches=[(5, 3)]", r"must be pairs \(first, last\)"),
        ("train.data_workers=-1", "train.data_workers must be at least 0"),
        ("train.seed", "needs a name and a value, got --gin.train.seed"),
        ("T5Config.dropout_rate=1.5", r"T5Config.dropout_rate must be in \[0, 1\), got 1.5"),
        ("T5Config.dtype=float", "T5Config.dtype is unknown: got 'float'; did you mean"),
        ("T5Config.remat=ful", "T5Config.remat is unknown: got 'ful'; did you mean 'full'"),
        ("T5Config.mlp_activations=('gellu',)", "did you mean 'gelu'"),
        ("T5Config.num_encoder_layers=0", "EncoderDecoder needs T5Config.num_encoder_layers > 0"),
        ("ByteVocabulary.num_sentinels=2", "cuts 3 spans .* has 2 sentinels"),
        ("train.model=[", "gin cannot read what was bound"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(binding, message):
    with pytest.raises(UserError, match=message) as raised:
        load(binding)
    assert str(raised.value).splitlines()[0]


def test_a_later_file_may_put_another_object_in_the_place_of_one():
    run = load(files=[*QUICKSTART, "gin/optimizers/adafactor.gin"])
    assert run.optimizer.factory.__name__ == "adafactor"
    with pytest.raises(UserError, match=r"AdamW.b1 binds nothing"):
        load("AdamW.b1=0.5", files=[*QUICKSTART, "gin/optimizers/adafactor.gin"])


def test_a_macro_that_nothing_refers_to_is_refused_whatever_is_displaced(tmp_path):
    (tmp_path / "more.gin").write_text("STEPPS = 3\ntrain.optimizer = @Lion()\n")
    with pytest.raises(UserError, match="STEPPS binds nothing.*did you mean 'STEPS'"):
        load("Lion.learning_rate=1e-3", files=[*QUICKSTART, str(tmp_path / "more.gin")])


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "small.gin").write_text("train.model_dir = 'x'\n")
    with pytest.raises(UserError, match=r"train.model is needed and not bound; add --gin.train.m"):
        load(files=[str(tmp_path / "small.gin")])


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match="gin file 'nowhere.gin' is not there"):
        load(files=["nowhere.gin"])


def test_a_name_in_a_file_is_reported_with_its_line(tmp_path):
    (tmp_path / "wrong.gin").write_text("\nTrian.seed = 1\n")
    with pytest.raises(UserError, match=r"wrong.gin:2"):
        load(files=[str(tmp_path / "wrong.gin")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"import seqio_not_here\n", "a gin file imports what is not there: .*seqio_not_here"),
        (b"\nMODEL_DIR = /tmp/x\n", r"gin cannot read what was bound: .* \(.*wrong.gin:2\)"),
        (b"MODEL_DIR = '\xff'\n", "gin cannot read what was bound: utf-8"),
        (b"include 'wrong.gin'\n", "a gin file includes itself"),
    ],
)
def test_a_file_that_gin_cannot_read_is_one_line(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.gin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(files=["wrong.gin"])


def test_bindings_of_another_command_are_no_mistake():
    assert load("evaluate.split=train").eval_split == "validation"


@pytest.fixture
def vocabulary_here(tmp_path, text_file, monkeypatch):
    """The vocabulary that run files name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text_file),
        model_prefix="vocabulary",
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
@pytest.mark.usefixtures("vocabulary_here")
def test_run_files_resolve_to_their_golden(path):
    """Every default of the framework that a run depends on is part of this text."""
    run = load(files=[str(path)], roots=(path.stem if path.stem in ROOTS else "train",))
    text = configurables.resolved_text()
    golden = GOLDEN / f"config_{path.parent.name}_{path.stem}.gin"
    assert golden.exists(), f"to make it, write {golden} with:\n{text}"
    assert text == golden.read_text(), f"if this change is meant, write {golden} with:\n{text}"
    assert path.stem in ROOTS or run.layout.lengths


@pytest.mark.parametrize(
    "path", [p for p in RUN_FILES if p.stem not in ROOTS], ids=lambda p: f"{p.parent.name}/{p.name}"
)
@pytest.mark.usefixtures("vocabulary_here")
def test_run_files_take_the_common_macros_and_open_with_their_command(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith(("# t5lite train --gin_file=", "# t5lite plan --gin_file="))
    assert "Hardware" in lines[1]
    assert len(lines) <= 60
    run = load("MODEL_DIR=m", "STEPS=9", "BATCH_SIZE=4", "SEED=3", files=[str(path)])
    assert (run.model_dir, run.total_steps, run.batch_size, run.seed) == ("m", 9, 4, 3)


@pytest.mark.parametrize(
    ("run", "model", "objective", "kind"),
    [
        ("finetune", "mt5_small", "supervised", "EncoderDecoder"),
        ("finetune", "longt5_tglobal_base", "supervised", "EncoderDecoder"),
        ("finetune", "llama_style_base", "supervised", "DecoderOnly"),
        ("pretrain", "decoder_only_base", "causal", "DecoderOnly"),
        ("pretrain", "encoder_only_base", "masked_lm", "EncoderOnly"),
    ],
)
@pytest.mark.usefixtures("vocabulary_here")
def test_a_model_file_behind_a_run_file_takes_the_place_of_its_model(run, model, objective, kind):
    files = [f"gin/run/{run}.gin", f"gin/models/{model}.gin", f"gin/objectives/{objective}.gin"]
    assert type(load(files=files).model).__name__ == kind


@pytest.mark.usefixtures("vocabulary_here")
def test_the_mixture_of_the_readme_is_what_it_says(tmp_path):
    text = (ROOT / "README.md").read_text()
    block = re.search(r"^    train.task = @Mixture\(\).*?(?=^- )", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for line in block.group().replace("gs://bucket/", "").splitlines()]
    bindings = "\n".join(lines).replace("'spiece.model'", "'vocabulary.model'")
    (tmp_path / "mixture.gin").write_text(bindings)
    (tmp_path / "train-0.tsv.gz").write_bytes(gzip.compress(b"a  dog\tein Hund\n" * 3))
    (tmp_path / "dev.tsv").write_text("cat\tKatze\n")
    (tmp_path / "one.jsonl.gz").write_bytes(gzip.compress(b'{"text": "some text"}\n' * 5))
    (tmp_path / "held_out.txt").write_text("some text\n")
    run = load(
        "train.model_dir=m",
        *("train.total_steps=1", "train.batch_size=8", "train.model=@EncoderDecoder()"),
        "T5Config.vocab_size=1000",
        *(f"{scope}/FileSource.data_dir={tmp_path}/tfds" for scope in ("pairs", "text")),
        files=[
            *("gin/models/quickstart.gin", "gin/optimizers/adamw_cosine.gin"),
            *("mixture.gin", str(_cosine(tmp_path))),
        ],
    )
    assert run.packed
    assert run.task.rates("train") == pytest.approx((0.75, 0.25))
    translate, spans = run.task.tasks
    assert [len(task.tokens("train")) for task in run.task.tasks] == [3, 5]
    # Behind a run file whose own task is of pairs.
    behind = load(files=["gin/run/finetune.gin", "mixture.gin"])
    assert [task.inputs for task in behind.task.tasks] == [translate.inputs, None]
    decode = run.task.vocabulary.decode
    assert [decode(ids) for ids in translate.tokens("validation")[0]] == [
        decode(run.task.vocabulary.encode(text))
        for text in ("translate English to German: cat", "Katze")
    ]
    assert spans.objective.inputs_length == 512


def _cosine(folder):
    path = folder / "cosine.gin"
    numbers = ("learning_rate = 1e-3", "warmup_steps = 1", "decay_steps = 2")
    path.write_text("".join(f"Cosine.{number}\n" for number in numbers))
    return path
