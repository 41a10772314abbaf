"""Eight simulated devices, shapes checked at run time, and small things that many tests need."""

import gc
import importlib.metadata
import os

# Tests run a program once or twice, so it is compiled fast: without optimizations, in one part, and
# with XLA's older emitters of fusions, which take a third of the time of those through MLIR.
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# XLA aborts the process for a flag that it does not know; jaxlib 0.12 has no older emitters.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
    COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"
# Set before JAX is imported: every test sees eight CPU devices.
# XLA aborts a process whose devices do not meet in a collective within 40 seconds, which eight
# devices on two busy cores may need.
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=1200"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {COMPILE_FAST} {PATIENT}"
os.environ["JAX_PLATFORMS"] = "cpu"
# For the processes that are started from here, workers of xdist included: fewer page faults.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

import logging
import pathlib
import pydoc_data.topics
import secrets
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from t5lite.core.locks import wait_for_lock
from tests.faults import build_library
from tests.type_checker import check_arrays_of

# Loading a program from the persistent cache takes about 0.05 seconds.
MIN_COMPILE_SECONDS = 0.1
# The same in all workers: they inherit the environment of the process that starts them.
SEED = int(os.environ.setdefault("T5LITE_TEST_SEED", str(secrets.randbits(31))))

# Rooms whose signatures have arrays. Not `configurables`: gin asks its functions what they take,
# and a checked one takes anything; nor `data`, where something is done for every record.
CHECKED = [f"t5lite.{room}" for room in ("inference", "losses", "models", "optimizers", "training")]
check_arrays_of(CHECKED)
jax.config.update("jax_numpy_rank_promotion", "raise")
logging.getLogger("absl").setLevel(logging.ERROR)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Returns a worker more than there are cores; tests that are named run in this process."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    # Many tests wait for files or processes. A worker takes up to 2 GB.
    return min(len(os.sched_getaffinity(0)) + 1, 16)


def pytest_collection_finish() -> None:
    """Keeps the imported modules out of all later garbage collections, which Orbax runs often."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def seed() -> int:
    """A seed that differs in every run of pytest; a failing test prints it."""
    print(f"T5LITE_TEST_SEED={SEED} repeats this test")
    return SEED


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Random numbers from that seed."""
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory that all processes of this run of pytest share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def programs_dir(shared_dir: pathlib.Path) -> pathlib.Path:
    """The persistent compilation cache: many tests, of all processes, compile the same programs."""
    # A developer sets the variable to keep compiled programs from one run of pytest to the next.
    path = pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", shared_dir / "programs"))
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return path


@pytest.fixture(scope="session")
def make_once(shared_dir: pathlib.Path) -> Callable[[str, Callable[[pathlib.Path], None]], Any]:
    """Makes a directory that all processes of this run of pytest share and only read.

    The function takes the name of the directory and a function that fills it. The first test that
    needs the directory fills it; those of other processes wait for it.
    """

    def make(name: str, fill: Callable[[pathlib.Path], None]) -> pathlib.Path:
        path = shared_dir / "made" / name
        path.parent.mkdir(exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            wait_for_lock(lock)
            if not path.with_suffix(".complete").exists():
                fill(path)
                path.with_suffix(".complete").touch()
        return path

    return make


@pytest.fixture(scope="session")
def faults_library(make_once: Callable[..., Any]) -> pathlib.Path:
    """The folder of the library that makes calls fail; see `tests.faults.preloaded`."""
    return make_once("faults", build_library)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory for the data sets that tests build, shared by all tests of a process."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def one_device(data_dir: str, programs_dir: pathlib.Path) -> dict[str, str]:
    """Environment of a process with one CPU device and the programs of other tests."""
    return {
        "TFDS_DATA_DIR": data_dir,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "XLA_FLAGS": f"{COMPILE_FAST} {PATIENT}",
        "JAX_COMPILATION_CACHE_DIR": str(programs_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(MIN_COMPILE_SECONDS),
    }


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Forty lines of text with something to learn in it."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs"]
    lines = [" ".join(words[(i + j) % len(words)] for j in range(7)) for i in range(40)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small SentencePiece model with T5's special ids."""
    import sentencepiece

    path = tmp_path_factory.mktemp("vocabulary") / "spiece"
    text = pydoc_data.topics.topics.values()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for topic in text for line in topic.splitlines()),
        model_prefix=str(path),
        vocab_size=500,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return f"{path}.model"


@pytest.fixture(scope="session")
def sentencepiece_vocabulary(sentencepiece_model: str) -> Any:
    """Its vocabulary."""
    from t5lite.data.text.vocabularies import SentencePieceVocabulary

    return SentencePieceVocabulary(path=sentencepiece_model)
