"""Eight simulated devices, shapes checked at run time, and small things that many tests need."""

import importlib.metadata
import os

# Tests run a program once or twice, so it is compiled fast: without optimizations, in one part, and
# with XLA's older emitters of fusions, which take a third of the time of those through MLIR.
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# XLA aborts the process for a flag that it does not know; jaxlib 0.12 has no older emitters.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
    COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"
# Set before JAX is imported: every test sees eight CPU devices.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}"
os.environ["JAX_PLATFORMS"] = "cpu"

import logging
import pathlib
import pydoc_data.topics
from typing import Any

import jax
import jaxtyping
import pytest

# Where something is done for every record, and checking it takes longer than doing it.
UNCHECKED = {"core", "data", "objectives"}
# Not `configurables`: gin asks its functions what they take, and a checked one takes anything.
ROOMS = {
    p.parent.name for p in (pathlib.Path(__file__).parent.parent / "t5lite").glob("*/__init__.py")
}
jaxtyping.install_import_hook(
    [f"t5lite.{room}" for room in sorted(ROOMS - UNCHECKED)], "beartype.beartype"
)
jax.config.update("jax_numpy_rank_promotion", "raise")
logging.getLogger("absl").setLevel(logging.ERROR)


@pytest.fixture(scope="session", autouse=True)
def programs_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where compiled programs are kept: many tests, of all processes, compile the same ones."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "programs"
    # Set by a developer who keeps compiled programs from one run of pytest to the next.
    path = pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", path))
    path.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return path


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for the data sets that tests build, shared by all of them."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def one_device(data_dir: str, programs_dir: pathlib.Path) -> dict[str, str]:
    """What a process is told: one CPU device, and what others have made already."""
    return {
        "TFDS_DATA_DIR": data_dir,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "XLA_FLAGS": COMPILE_FAST,
        "JAX_COMPILATION_CACHE_DIR": str(programs_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
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
