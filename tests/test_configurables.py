import ast
import gzip
import pathlib
import re
import sys

import pytest
import sentencepiece
from gin import config as gin_internals

from t5lite import configurables, gin_text, gin_usage
from t5lite.core.errors import UserError
from t5lite.parallel.mesh import Mesh
from t5lite.public_names import ROOTS

QUICKSTART = ["gin/run/quickstart.gin"]
ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = pathlib.Path(__file__).parent / "golden"
RUN_FILES = sorted(ROOT.glob("gin/run/*.gin")) + sorted(ROOT.glob("experiments/*/*.gin"))


def load(*bindings, files=QUICKSTART, roots=("train",)):
    return configurables.load(files, bindings, [], *roots)[0]


def test_a_value_that_is_no_gin_value_is_a_string():
    run = load("MODEL_DIR=/tmp/some where", "train.eval_split=test")
    assert (run.model_dir, run.eval_split) == ("/tmp/some where", "test")


def test_later_files_and_flags_win(tmp_path):
    later = tmp_path / "later.gin"
    later.write_text("STEPS = 7\nBATCH_SIZE = 3\n")
    run = load("BATCH_SIZE=5", files=[*QUICKSTART, str(later)])
    assert (run.total_steps, run.batch_size) == (7, 5)


def test_default_parts_can_be_bound():
    run = load("Mesh.fsdp=4", "CrossEntropy.z_loss=0.5")
    assert run.mesh == Mesh(fsdp=4)
    assert run.loss.z_loss == 0.5


def test_optax_optimizers_need_no_code():
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
        (
            "STPES=1",
            "STPES binds nothing: no .* uses such a macro; did you mean 'STEPS'?",
        ),
        (
            "Lion.b1=0.5",
            "Lion.b1 binds nothing: no object .* uses such a parameter",
        ),
        ("train.seed=%SED", "macro SED is used and not defined"),
        ("train.seed=ten", "train.seed must be int, got 'ten'"),
        ("train.max_gradient_norm=big", "train.max_gradient_norm must be a number, got 'big'"),
        (
            "train.optimizer=@Adamw()",
            "'Adamw' is not a name that gin can bind; did you mean 'AdamW'",
        ),
        (
            "train.optimizer=AdamW",
            "train.optimizer must be Optimizer or OptimizersByPattern, got 'AdamW'; an object is",
        ),
        (
            "train.optimizer=@AdamW",
            "train.optimizer must be Optimizer or OptimizersByPattern, got function; an object",
        ),
        (
            "Task.objective=Causal",
            "Task.objective must be TextObjective or PairObjective, got 'Causal'; an object is",
        ),
        ("T5Config.mlp_activations=5", "T5Config.mlp_activations must be "),
        ("T5Config.mlp_activations=()", "T5Config.mlp_activations must be at least one activation"),
        ("SEED=3000000000", "train.seed must be in "),
        ("MODEL_DIR=", "train.model_dir must be a local folder, got ''"),
        ("STEPS=%STEPS", "a macro refers to itself"),
        ("AdamW.nesterov=false", "AdamW.nesterov must be True or False, got 'false'"),
        ("train.max_gradient_norm=[1.0]", r"train.max_gradient_norm must be a number, got \[1.0\]"),
        ("CrossEntropy.z_loss=[1.0]", r"CrossEntropy.z_loss must be a number, got \[1.0\]"),
        ("MODEL_DIR=gs://bucket/run", "train.model_dir must be a local folder"),
        ("SpanCorruption.mean_noise_span_length=0.5", "must be at least 1 token, got 0.5"),
        ("Task.targets={txt", "Task.targets '{txt' must be a template: expected '}'"),
        ("Task.targets=to {0}", "must be a template: name fields as in {text}, .*, got {0}"),
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
        ("ByteVocabulary.num_sentinels=2", "removes 3 spans .* has 2 sentinels"),
        ("train.model=[", r"train.model must be .*, got '\['; an object is bound as @NAME"),
    ],
)
def test_a_wrong_binding_is_an_error_on_one_line(binding, message):
    with pytest.raises(UserError, match=message) as raised:
        load(binding)
    assert str(raised.value).splitlines()[0]


def test_a_later_file_may_replace_an_object():
    run = load(files=[*QUICKSTART, "gin/optimizers/adafactor.gin"])
    assert run.optimizer.factory.__name__ == "adafactor"
    with pytest.raises(UserError, match=r"AdamW.b1 binds nothing"):
        load("AdamW.b1=0.5", files=[*QUICKSTART, "gin/optimizers/adafactor.gin"])


def test_a_macro_without_references_is_an_error_even_if_an_object_is_replaced(tmp_path):
    (tmp_path / "more.gin").write_text("STEPPS = 3\ntrain.optimizer = @Lion()\n")
    with pytest.raises(UserError, match="STEPPS binds nothing.*did you mean 'STEPS'"):
        load("Lion.learning_rate=1e-3", files=[*QUICKSTART, str(tmp_path / "more.gin")])


def test_a_required_parameter_is_named(tmp_path):
    (tmp_path / "small.gin").write_text("train.model_dir = 'x'\n")
    with pytest.raises(UserError, match=r"train.model is required and not bound; add --gin.tr"):
        load(files=[str(tmp_path / "small.gin")])


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="gin file 'nowhere.gin' not found; searched"):
        load(files=["nowhere.gin"])


def test_an_unknown_name_in_a_file_is_reported_with_its_line(tmp_path):
    (tmp_path / "wrong.gin").write_text("\nTrian.seed = 1\n")
    with pytest.raises(UserError, match=r"wrong.gin:2"):
        load(files=[str(tmp_path / "wrong.gin")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"import seqio_not_here\n", "a gin file imports a module .*seqio_not_here"),
        (b"\nMODEL_DIR = /tmp/x\n", r"gin cannot parse what is bound: .* \(.*wrong.gin:2\)"),
        (
            b"SEED = 1\nMODEL_DIR = '\xff'\n",
            "wrong.gin:2 must be UTF-8 text, got 0xff at byte 14 of the line; save it as UTF-8",
        ),
        ("SEED = 1\n".encode("utf-16"), "wrong.gin:1 must be UTF-8, got UTF-16"),
        (b"SEED = 1\nSTEPS = \0\n", "wrong.gin:2 must be UTF-8 text, got 0x00 at byte 9"),
        (b"include 'wrong.gin'\n", "a gin file includes itself"),
    ],
)
def test_a_file_that_gin_cannot_read_is_an_error_on_one_line(
    content, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.gin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(files=["wrong.gin"])


def test_bindings_of_another_root_are_valid():
    run = load("evaluate.split=train", "infer.batch_size=4", "vocab.size=300", "convert.dtype=x")
    assert run.eval_split == "validation"


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("evaluate.splitt=x", "evaluate has no parameter 'splitt'; did you mean 'split'"),
        ("infer.foo=1", "infer has no parameter 'foo'"),
        ("sweep.value={}", "sweep has no parameter 'value'; did you mean 'values'"),
        ("vocab/Task.name=x", "vocab/Task.name binds nothing"),
    ],
)
def test_a_binding_that_no_root_reads_is_an_error_for_every_command(binding, message):
    for root in ("train", "evaluate", "infer"):
        with pytest.raises(UserError, match=message):
            load(binding, roots=(root,))


@pytest.mark.parametrize(
    "value",
    [
        "[S2S] {inputs}",
        "(a) {inputs}",
        "@user: {inputs}",
        "%d {inputs}",
        "{inputs}@{id} 5%",
        "{@inputs}",
        'it\'s "{inputs}"',
        "{inputs}\nSEED = 4",
        "{[]:1}",
        "{inputs} # not a comment",
        " {inputs}\t",
    ],
)
def test_text_that_only_resembles_a_gin_value_is_a_string(value):
    statement = gin_text.binding_statement(f"Task.inputs={value}")
    assert statement.partition(" = ")[0] == "Task.inputs"
    assert ast.literal_eval(statement.partition(" = ")[2]) == value


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Task.inputs=@user", "'user' is not a name that gin can bind; .*quote it: \"'@...'\""),
        ("Task.inputs=%d", "macro d is used and not defined; .*quote it: \"'%...'\""),
        (
            "Task.objective=@gin.macro()",
            r"@gin.macro\(\) is not a value; the value of a macro is %NAME",
        ),
        ("{[]:1}=3", r"needs a macro such as STEPS or a parameter .*, got '{\[\]:1}'"),
        ("SEED\nSTEPS=3", "needs a macro such as STEPS or a parameter"),
        ("Task.metrics=['..:x']", "'..:x' cannot be imported"),
        ("Task.objective=@no_such_module:X()", "'no_such_module:X' cannot be imported: No module"),
        ("Task.objective=@math:X()", "'math:X' cannot be imported: module 'math' has no attribute"),
        ("Task.objective=@math:pi()", "'math:pi' must be a function, got float"),
        ("train.seed=" + "[" * 5000, "train.seed must be int, got '"),
        ("train.seed=" + "9" * 5000, "train.seed must be int, got '9{199}[.]{3}"),
    ],
)
def test_hostile_bindings_are_errors_on_one_line(binding, message):
    with pytest.raises(UserError, match=message):
        load(binding)


def test_a_byte_order_mark_in_a_gin_file_is_dropped(tmp_path):
    path = tmp_path / "bom.gin"
    path.write_bytes(b"\xef\xbb\xbfSTEPS = 7\r\nSEED = 2\r\n")
    run = load(files=[*QUICKSTART, str(path)])
    assert (run.total_steps, run.seed) == (7, 2)


def test_an_include_composes_like_a_repeated_gin_file(tmp_path):
    """A run file may rebind objects and values that its includes bound."""
    leaf = tmp_path / "leaf.gin"
    leaf.write_text(
        "FileSource.files = {'train': %TRAIN_FILE}\n"
        "TRAIN_FILE = 'a.txt'\n"
        "Task.source = @FileSource()\n"
    )
    mine = tmp_path / "mine.gin"
    mine.write_text(
        f"include '{leaf}'\n"
        "FileSource.files = {'train': 'b.txt', 'validation': 'c.txt'}\n"
        "train.optimizer = @Adafactor()\n"
        "Adafactor.learning_rate = 0.1\n"
    )
    whole = tmp_path / "whole.gin"
    whole.write_text(f"include 'gin/run/quickstart.gin'\ninclude '{mine}'\n")
    included = load(files=[str(whole)])
    assert included == load(files=[*QUICKSTART, str(leaf), str(mine)])
    assert dict(included.task.source.files) == {"train": "b.txt", "validation": "c.txt"}
    assert included.optimizer.factory.__name__ == "adafactor"


def test_a_binding_that_no_include_used_is_an_error(tmp_path):
    mine = tmp_path / "mine.gin"
    mine.write_text(
        "include 'gin/run/quickstart.gin'\ntrain.optimizer = @Lion()\n"
        "Lion.learning_rate = 0.1\nAdafactor.learning_rate = 0.1\n"
    )
    with pytest.raises(UserError, match="Adafactor.learning_rate binds nothing"):
        load(files=[str(mine)])


OWN_CODE = """
import dataclasses
import optax
from t5lite.losses.cross_entropy import CrossEntropy

@dataclasses.dataclass(frozen=True, kw_only=True)
class Half:
    rate: float = 0.5

    def __call__(self, step):
        return self.rate / 2

def flat(step):
    return 0.25

def momentum(learning_rate, decay: float = 0.9) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, decay)

def gentle(z_loss: float) -> CrossEntropy:
    return CrossEntropy(z_loss=z_loss)
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    package = tmp_path / "own_research"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_research.parts"
    for name in ("own_research", "own_research.parts"):
        sys.modules.pop(name, None)


def test_names_from_ones_own_code_bind_like_public_names(own_code, tmp_path):
    mine = tmp_path / "mine.gin"
    mine.write_text(
        f"train.loss = @{own_code}:gentle()  # not @no.module:name()\n"
        f"train.optimizer = @{own_code}:momentum()\n"
        f"{own_code}:momentum.learning_rate = @{own_code}:Half()\n"
        f"{own_code}:Half:\n  rate = 0.125\n"
    )
    flags = (f"{own_code}:gentle.z_loss=0.25", "Task.targets=@no.module:name {text}")
    run = load(*flags, files=[*QUICKSTART, str(mine)])
    assert run.loss.z_loss == 0.25
    assert run.task.targets == "@no.module:name {text}"
    assert run.optimizer.factory.__name__ == "momentum"
    assert run.optimizer.numbers == {"decay": 0.9}
    assert run.optimizer.learning_rate(3) == 0.0625


def test_the_resolved_text_imports_names_from_ones_own_code_again(own_code, tmp_path):
    bindings = (
        f"train.loss=@{own_code}:gentle()",
        f"{own_code}:gentle.z_loss=0.25",
        f"AdamW.learning_rate=@scope/{own_code}:Half()",
        f"scope/{own_code}:Half.rate=1.0",
    )
    run = load(*bindings)
    text = configurables.resolved_text()
    assert f"train.loss = @{own_code}:gentle()" in text
    assert f"scope/{own_code}:Half.rate = 1.0" in text
    # As a new process would read it.
    for shown in (f"{own_code}:gentle", f"{own_code}:Half"):
        del configurables._TARGETS[shown]
        gin_internals._REGISTRY.pop("t5lite." + gin_text.own_selector(*shown.split(":")))
    (tmp_path / "config.gin").write_text(text)
    assert load(files=[str(tmp_path / "config.gin")]) == run
    assert configurables.resolved_text() == text


def test_a_name_without_parentheses_is_the_function_itself(own_code):
    run = load(f"AdamW.learning_rate=@{own_code}:flat")
    assert run.optimizer.learning_rate(step=7) == 0.25
    assert run.optimizer.learning_rate.function.__module__ == own_code


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("OWN:gentle.z_los=1", "OWN:gentle has no parameter 'z_los'; did you mean 'z_loss'"),
        ("OWN:gentle.z_loss=much", "OWN:gentle.z_loss must be float, got 'much'"),
        ("OWN:Half.rate=0.5", "OWN:Half.rate binds nothing"),
        ("train.optimizer=@OWN:flat()", "OWN:flat.step is required and not bound"),
        ("train.mesh=@OWN:Half()", "train.mesh must be Mesh, got Half"),
    ],
)
def test_mistakes_with_names_from_ones_own_code_are_errors(binding, message, own_code):
    more = () if "z_loss" in binding else (f"{own_code}:gentle.z_loss=0.1",)
    with pytest.raises(UserError, match=message.replace("OWN", own_code)):
        load(f"train.loss=@{own_code}:gentle()", *more, binding.replace("OWN", own_code))


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
@pytest.mark.usefixtures("vocabulary_here")
def test_bindings_that_are_followed_are_those_that_gin_reads(path):
    """`gin_usage` follows references without building; gin records what building read."""
    root = path.stem if path.stem in ROOTS else "train"
    load(files=[str(path)], roots=(root,))
    bound = gin_usage.current_bindings()
    read_by_gin = {
        (scopes.get(parameter, ""), selector, parameter)
        for (scope, selector), values in gin_internals._OPERATIVE_CONFIG.items()
        for scopes in [_providing_scopes(bound, scope, selector)]
        for parameter in values
        if parameter in scopes
    }
    assert gin_usage.read_bindings(bound, [root]) == read_by_gin


def _providing_scopes(bound, scope, selector):
    """From each bound parameter of a call to the innermost scope that binds it."""
    parts = scope.split("/") if scope else []
    outer = ["/".join(parts[:count]) for count in range(len(parts) + 1)]
    return {name: each for each in outer for name in bound.get((each, selector), {})}


@pytest.fixture
def vocabulary_here(tmp_path, text_file, monkeypatch):
    """The vocabulary that run files name, in the current directory."""
    monkeypatch.chdir(tmp_path)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text_file),
        model_prefix="vocabulary",
        vocab_size=90,
        # Of classes, which must have different tokens.
        required_chars="0123456789-_BIO",
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
    """The golden text holds every default of the framework that a run depends on."""
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
def test_a_model_file_after_a_run_file_replaces_its_model(run, model, objective, kind):
    files = [f"gin/run/{run}.gin", f"gin/models/{model}.gin", f"gin/objectives/{objective}.gin"]
    assert type(load(files=files).model).__name__ == kind


@pytest.mark.usefixtures("vocabulary_here")
def test_the_mixture_of_the_manual_builds(tmp_path):
    text = (ROOT / "docs/data.md").read_text()
    block = re.search(r"^train.task = @Mixture\(\).*?(?=^```)", text, re.DOTALL | re.MULTILINE)
    bindings = block.group().replace("gs://bucket/", "").replace("spiece.model", "vocabulary.model")
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
    # After a run file whose own task is of pairs.
    after = load(files=["gin/run/finetune.gin", "mixture.gin"])
    assert [task.inputs for task in after.task.tasks] == [translate.inputs, None]
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


REBINDS = """
include '{path}'
train.optimizer = @Lion()
Lion.learning_rate = 1e-3
Task.source = @FileSource()
FileSource.files = {{'train': 'mine.jsonl', 'validation': 'mine.jsonl'}}
FileSource.fields = ('inputs', 'targets')
"""


@pytest.mark.parametrize(
    "path", [p for p in RUN_FILES if p.stem not in ROOTS], ids=lambda p: p.stem
)
@pytest.mark.usefixtures("vocabulary_here")
def test_a_file_that_includes_a_run_file_can_rebind_its_optimizer_and_files(path, tmp_path):
    mine = tmp_path / "mine.gin"
    mine.write_text(REBINDS.format(path=path))
    assert load(files=[str(mine)]).optimizer.factory.__name__ == "lion"
