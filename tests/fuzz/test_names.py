"""Names and values that users type, damaged: gin flags and files, sweeps, and functions by name."""

import pytest
from hypothesis import strategies as st

from t5lite import configurables
from t5lite.cli.new_launch import _space_of
from t5lite.data.text.preprocessors import PREPROCESSORS, preprocessor
from t5lite.launching.sweeps.settings import num_settings, planned_settings
from t5lite.launching.sweeps.space import parse_space
from tests.fuzz.harness import attack, attack_from
from tests.fuzz.mutation import mutations

pytestmark = pytest.mark.proof

FLAGS = (
    "train.optimizer=@AdamW()",
    "AdamW.learning_rate=0.1",
    "AdamW.b1 = 0.9",
    "MODEL_DIR=/tmp/a b",
    "Task.preprocessors=['lowercase', 'json:loads']",
    "scope/FileSource.files={'train': ['a.txt', \"b\"], 'dev': None}",
    "train.loss=@json:JSONDecoder()",
    "T5Config.embed_dim=%WIDTH",
    "Mixture.rates=(1, -2.5e3, True)",
)
EXPRESSIONS = (
    "[0.0, 'a', True, None, -1]",
    "range(1, 10, 3)",
    "uniform(0, 0.3)",
    "log(1e-4, 1e-2, 5)",
    "log(1, 1000)",
)
GIN_FILE = b"""# A comment.
include 'gin/meshes/fsdp.gin'
WIDTH = 8
train.optimizer = @AdamW()
AdamW.learning_rate = @Cosine()
scope/Cosine.learning_rate = 1e-3
Task.preprocessors = [
    'lowercase',  # first
    "parse_json",
]
train.loss = @json:JSONDecoder()
T5Config:
    embed_dim = %WIDTH
    num_heads = (2)
"""
SWEEP_FILE = b"""sweep.values = {
    'AdamW.learning_rate': 'log(1e-4, 1e-2, 3)',
    'train.seed': [1, 2, 3],
}
sweep.method = 'grid'
sweep.trials = 9
"""
LISTED_FILE = b"sweep.listed = [{'a.b': 1, 'c': 'x'}, {'a.b': 2, 'c': None}]\nsweep.seed = 3\n"


def decoded(read):
    """Returns a reader of bytes, which arguments hold as surrogates if they are not UTF-8."""
    return lambda text: read(text.decode(errors="surrogateescape"))


def test_gin_flags_are_parsed_or_rejected(seed):
    def read(flag: str) -> None:
        configurables.load([], [flag], [])

    samples = [flag.encode() for flag in FLAGS]
    attack("gin flags", decoded(read), mutations(samples, seed), seed)
    attack_from("gin flags", lambda text: read(f"a.b={text}"), st.text(), seed)


@pytest.fixture
def gin_file(memory_dir):
    path = memory_dir / "a.gin"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        configurables.load([str(path)], [], [])

    return read


def test_gin_files_are_parsed_or_rejected(seed, gin_file):
    attack("gin files", gin_file, mutations([GIN_FILE], seed), seed)
    attack_from("gin files", gin_file, st.binary(), seed)


def test_sweep_files_are_read_or_rejected(seed, memory_dir):
    path = memory_dir / "sweep.gin"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        (sweep,) = configurables.load([str(path)], [], [], "sweep")
        parse_space(sweep.space)

    samples = [SWEEP_FILE, LISTED_FILE]
    for sample in samples:
        read(sample)
    attack("sweep files", read, mutations(samples, seed), seed)
    attack_from(
        "sweep files",
        read,
        st.text().map(lambda text: f"sweep.values = {{'a': {text!r}}}".encode()),
        seed,
    )


def test_sweep_expressions_are_parsed_or_rejected(seed):
    def read(text: str) -> None:
        space = parse_space(_space_of([f"a.b={text}"]))
        num_settings(space)
        for method in ("grid", "random"):
            trials = 3 if method == "random" else None
            planned_settings(method, space, trials=trials)

    samples = [text.encode() for text in EXPRESSIONS]
    attack("sweep expressions", decoded(read), mutations(samples, seed), seed)
    numbers = st.one_of(st.integers(), st.floats(), st.integers(-(10**400), 10**400)).map(repr)
    calls = st.builds(
        "{}({}, {})".format, st.sampled_from(["log", "uniform", "range"]), numbers, numbers
    )
    attack_from("sweep expressions", read, st.text() | calls, seed)


def test_names_of_preprocessors_are_found_or_rejected(seed):
    samples = [
        b"json:loads",
        b"t5lite.data.text.preprocessors:lowercase",
        *map(str.encode, PREPROCESSORS),
    ]
    attack("preprocessor names", decoded(preprocessor), mutations(samples, seed), seed)
    attack_from("preprocessor names", preprocessor, st.text() | st.text().map("os:{}".format), seed)
