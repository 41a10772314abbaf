"""Damages a checkpoint in many ways, reads it each time, and measures what checksums cost.

    PYTHONPATH=. python experiments/damage/measure.py --work=FOLDER --count=1000

Trains the quickstart for a few steps, and damages its checkpoint. A process that is aborted is
started again. Appends one JSON object per group of files and kind of damage to `results.jsonl`.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from t5lite import configurables
from t5lite.cli.arguments import parse_arguments
from t5lite.training import checkpoints as checkpoints_module
from t5lite.training import checksums_item
from t5lite.training.array_checksums import array_checksums
from t5lite.training.checkpoints import Checkpoints
from t5lite.training.program import TrainProgram, train_program
from t5lite.training.state import TrainState
from tests.damages import (
    OUTCOMES,
    Damage,
    apply_damage,
    as_record,
    copy_of,
    group_of,
    outcome_of,
    random_damages,
)

WORK = flags.DEFINE_string("work", None, "Directory for checkpoints and results.", required=True)
COUNT = flags.DEFINE_integer("count", 1000, "Number of damages.")
SEED = flags.DEFINE_integer("seed", 0, "Of the damages.")
FIRST = flags.DEFINE_integer("first", None, "Used by the script itself: the first to apply.")
PART = flags.DEFINE_enum("part", "damage", ["damage", "cost"], "What to measure.")
STEP = 20
RUN = [
    "--gin_file=gin/run/quickstart.gin",
    f"--gin.STEPS={STEP}",
    "--gin.train.keep_checkpoints=1",
]


def main(argv: list[str]) -> None:
    del argv
    work = pathlib.Path(WORK.value)
    if PART.value == "cost":
        measure_cost(work)
        return
    if FIRST.value is None:
        damage_all(work)
    else:
        damage_some(work, FIRST.value)


def train_quickstart(work: pathlib.Path) -> pathlib.Path:
    """Trains once, and returns the checkpoint."""
    model_dir = work / "run"
    if not (model_dir / "result.json").exists():
        command = [sys.executable, "-m", "t5lite", "train", *RUN, f"--gin.MODEL_DIR={model_dir}"]
        subprocess.run(command, check=True)
    return model_dir / "checkpoints" / str(STEP)


def program_of(work: pathlib.Path) -> TrainProgram:
    values, _, bindings = parse_arguments("train", [*RUN, f"--gin.MODEL_DIR={work / 'run'}"])
    (run,) = configurables.load(values.gin_file, bindings, values.gin_search_paths, "train")
    return train_program(run, run.mesh.make())


def damage_all(work: pathlib.Path) -> None:
    """Applies all damages in processes that may be aborted, and counts the outcomes."""
    checkpoint = train_quickstart(work)
    damages = random_damages(checkpoint, COUNT.value, SEED.value)
    lines = work / "outcomes.jsonl"
    lines.unlink(missing_ok=True)
    lines.touch()
    started = time.perf_counter()
    while (done := len(lines.read_text().splitlines())) < len(damages):
        code = subprocess.run([sys.executable, *sys.argv, f"--first={done}"]).returncode
        now = len(lines.read_text().splitlines())
        if code and now < len(damages):
            with lines.open("a") as file:
                file.write(as_record(damages[now], "abort", f"exit status {code}") + "\n")
    counts: dict[tuple[str, str], Counter[str]] = {}
    for line in lines.read_text().splitlines():
        record = json.loads(line)
        key = (group_of(record["file"]), record["kind"])
        counts.setdefault(key, Counter())[record["outcome"]] += 1
    with (work / "results.jsonl").open("a") as file:
        for (name, kind), outcomes in sorted(counts.items()):
            row = {"file": name, "kind": kind, **{each: outcomes[each] for each in OUTCOMES}}
            file.write(json.dumps({"part": "damage", "seed": SEED.value, **row}) + "\n")
    print(f"{len(damages)} damages in {time.perf_counter() - started:.0f} s")


def damage_some(work: pathlib.Path, first: int) -> None:
    """Applies the damages from number `first`, and records the outcome of each."""
    checkpoint = train_quickstart(work)
    program = program_of(work)
    intact = checkpoints_module.StoredCheckpoints(checkpoint.parent)
    wanted = intact.restore(STEP, program.state)
    about = intact.about(STEP)
    damages = random_damages(checkpoint, COUNT.value, SEED.value)
    with (work / "outcomes.jsonl").open("a") as file:
        for number, damage in enumerate(damages[first:], start=first):
            outcome, message = outcome_after(work, checkpoint, damage, wanted, about, number)
            file.write(as_record(damage, outcome, message) + "\n")
            file.flush()


def outcome_after(
    work: pathlib.Path,
    checkpoint: pathlib.Path,
    damage: Damage,
    wanted: TrainState,
    about: dict[str, Any],
    number: int,
) -> tuple[str, str]:
    """Two of four are read as training does, the others as `eval` does."""
    copy = copy_of(checkpoint, work / "copy")
    apply_damage(copy, damage)
    return outcome_of(copy, wanted, about, params_only=bool(number % 4 // 2))


def measure_cost(work: pathlib.Path) -> None:
    """Times saves and restores with checksums and without, in turn."""
    train_quickstart(work)
    program = program_of(work)
    quickstart = checkpoints_module.StoredCheckpoints(work / "run" / "checkpoints").restore(
        STEP, program.state
    )
    values = jax.random.normal(jax.random.key(0), (3, 10_000_000))
    large = TrainState(
        step=jnp.int32(0),
        params={f"layer_{n}": values[0, n::10] for n in range(10)},
        opt_state={"mu": values[1], "nu": values[2]},
    )
    for name, state in {"quickstart": quickstart, "120 MB": large}.items():
        size = sum(x.nbytes for x in jax.tree.leaves(state))
        rows = [time_once(work / "cost", state) for _ in range(12)][2:]
        row = {key: float(np.median([r[key] for r in rows])) for key in rows[0]}
        with (work / "results.jsonl").open("a") as file:
            file.write(json.dumps({"part": "cost", "state": name, "bytes": size, **row}) + "\n")
        print(name, size, row)


def time_once(folder: pathlib.Path, state: TrainState) -> dict[str, float]:
    """Saves and restores a state once; returns seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    made = Checkpoints(folder)
    times = {}
    started = time.perf_counter()
    processor = time.process_time()
    arrays = array_checksums(state)
    times["array_checksum_seconds"] = time.perf_counter() - started
    times["checksum_processor_seconds"] = time.process_time() - processor
    listed = 0.0
    of_files = checksums_item.file_checksums

    def timed(path: pathlib.Path) -> Any:
        nonlocal listed
        before = time.perf_counter()
        result = of_files(path)
        listed += time.perf_counter() - before
        return result

    checksums_item.file_checksums = timed
    processor = time.process_time()
    started = time.perf_counter()
    made.save(1, state, {}, arrays)
    times["blocking_save_seconds"] = time.perf_counter() - started
    made.close()
    times["save_seconds"] = time.perf_counter() - started
    times["save_processor_seconds"] = time.process_time() - processor
    checksums_item.file_checksums = of_files
    times["file_checksum_seconds"] = listed
    checksums = times["array_checksum_seconds"] + listed
    times["checksum_fraction"] = checksums / (times["save_seconds"] - listed)
    started = time.perf_counter()
    restored = checkpoints_module.StoredCheckpoints(folder).restore(1, state)
    jax.block_until_ready(restored)
    times["restore_seconds"] = time.perf_counter() - started
    return times


if __name__ == "__main__":
    app.run(main)
