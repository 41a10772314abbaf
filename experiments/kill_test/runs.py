"""What both parts of the experiment share: results, and runs in parallel."""

import concurrent.futures
import json
import os
import pathlib
import queue
import subprocess
import threading
from collections.abc import Callable, Iterable

import jax
from absl import flags

from t5lite.cli.quiet import quiet_libraries
from tests.faults import build_library, preloaded
from tests.forks import ForkServer

RESULTS = flags.DEFINE_string("results", "experiments/kill_test/results.jsonl", "Appended to.")
WORK = flags.DEFINE_string("work", None, "A folder for runs and compiled programs.")
PARALLEL = flags.DEFINE_integer("parallel", 2, "Runs at a time.")


def lines_of(part: str) -> list[dict]:
    """Returns the results of a part."""
    path = pathlib.Path(RESULTS.value)
    lines = [json.loads(line) for line in path.open()] if path.exists() else []
    return [line for line in lines if line["part"] == part]


def folder_of(part: str) -> pathlib.Path:
    """Returns the folder of a part; all of them share programs and data."""
    work = pathlib.Path(WORK.value).absolute()
    quiet_libraries()
    jax.config.update("jax_compilation_cache_dir", str(work / "programs"))
    os.environ["TFDS_DATA_DIR"] = str(work / "tfds")
    (work / part).mkdir(parents=True, exist_ok=True)
    return work / part


def start_server(folder: pathlib.Path) -> ForkServer:
    """Starts a process that runs commands with faults, each on one device."""
    work = pathlib.Path(WORK.value).absolute()
    build_library(folder)
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        # Compiled in a fraction of the time: what is measured here is not speed.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(work / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    return ForkServer(folder, environment | preloaded(folder))


def is_known(part: str, name: dict) -> bool:
    """Whether a job has a result."""
    return any(line.items() >= name.items() for line in lines_of(part))


def run_all(
    part: str, jobs: Iterable[tuple[dict, Callable[[ForkServer, pathlib.Path], dict]]]
) -> None:
    """Runs the jobs that have no result yet.

    Args:
        jobs: what names a job, and the function from a server and a folder for it to its result.
    """
    folder = folder_of(part)
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    left = [(name, work) for name, work in jobs if not is_known(part, name)]
    idle: queue.Queue = queue.Queue()
    for number in range(PARALLEL.value):
        own = folder / f"worker_{number}"
        idle.put((start_server(own), own))
    writing = threading.Lock()

    def run(name, work):
        server, own = idle.get()
        line = {"part": part, **name, **work(server, own), "commit": commit}
        idle.put((server, own))
        with writing, pathlib.Path(RESULTS.value).open("a") as file:
            file.write(json.dumps(line) + "\n")
            print(json.dumps(line)[:300], flush=True)

    with concurrent.futures.ThreadPoolExecutor(PARALLEL.value) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, *job) for job in left]):
            if future.exception():
                pool.shutdown(wait=False, cancel_futures=True)
            future.result()
    while not idle.empty():
        idle.get()[0].close()
