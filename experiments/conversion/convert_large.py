"""Converts a large random checkpoint in Hugging Face's format to t5lite and back.

python experiments/conversion/convert_large.py FOLDER [MODEL]

FOLDER needs three times the size of the checkpoint; MODEL is a file of gin/models, by default
t5_1_0_3b. Prints one JSON object per conversion: direction, seconds, peak memory in bytes.
"""

import dataclasses
import datetime
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

from t5lite import configurables
from t5lite.core.lazy import LazyArray
from t5lite.interop.foreign import Foreign
from t5lite.interop.huggingface import read_huggingface, write_huggingface
from t5lite.models.initializers import Parameter
from t5lite.models.model import parameters

FILES = "gin/run/quickstart.gin"


def random_array(seed: int, box: Parameter) -> LazyArray:
    """Random numbers, incompressible and of the scale of weights."""
    shape = tuple(box.value.shape)

    def load() -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.05)

    return LazyArray(shape, np.dtype(np.float32), load)


def make(folder: pathlib.Path, model_file: str) -> int:
    """Writes the checkpoint and returns its size in bytes."""
    (run,) = configurables.load([FILES, f"gin/models/{model_file}.gin"], [], [], "train")
    arrays = {
        name: random_array(seed, box)
        for seed, (name, box) in enumerate(parameters(run.model).items())
    }
    folder.mkdir(parents=True)
    vocabulary = run.task.vocabulary
    foreign = Foreign(model=run.model, params=arrays, vocabulary=vocabulary)
    write_huggingface(foreign, folder, np.dtype(np.float32))
    return sum(4 * math.prod(array.shape) for array in arrays.values())


def converted(source: pathlib.Path, output: pathlib.Path, to: str) -> dict[str, float]:
    """Converts in a subprocess; returns its time and peak memory."""
    command = [sys.executable, "-m", "t5lite", "convert"]
    command += [f"--input={source}", f"--output={output}", f"--to={to}"]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    # Linux reports units of 1,024 bytes.
    return {"seconds": time.perf_counter() - started, "peak_bytes": usage.ru_maxrss * 1024}


def same(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two Hugging Face directories hold the same arrays."""
    ours, theirs = read_huggingface(one), read_huggingface(other)
    assert dataclasses.asdict(ours.model.config) == dataclasses.asdict(theirs.model.config)
    return all(
        np.array_equal(array.load(), theirs.params[name].load())
        for name, array in ours.params.items()
    )


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    model_file = sys.argv[2] if len(sys.argv) > 2 else "t5_1_0_3b"
    size = make(folder / "a", model_file)
    about = {"date": str(datetime.date.today()), "model": model_file, "checkpoint_bytes": size}
    for what, source, output, to in (
        ("Hugging Face to t5lite", "a", "b", "t5lite"),
        ("t5lite to Hugging Face", "b", "c", "huggingface"),
    ):
        measured = converted(folder / source, folder / output, to)
        share = measured["peak_bytes"] / size
        print(json.dumps({**about, "what": what, **measured, "peak_share": share}), flush=True)
    print(json.dumps({**about, "what": "arrays equal", "equal": same(folder / "a", folder / "c")}))


if __name__ == "__main__":
    main()
