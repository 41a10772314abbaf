"""Kills training at random points of its moments, and compares what was resumed with an
uninterrupted run.

    python -m experiments.kill_test.moments --work=FOLDER

Appends a JSON object to the results for each run; continues after an interruption.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
import shutil
import statistics
import time

import numpy as np
from absl import app, flags

from experiments.kill_test.runs import folder_of, is_known, run_all, start_server
from t5lite.core.run_directory import read_metrics
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests.faults import CHANGES, Fault, calls_in
from tests.kills import Bench, Setting

ONLY = flags.DEFINE_list("settings", [], "Only these settings.")
RUNS_AT_MOST = flags.DEFINE_integer("runs", 100, "Runs of each setting, at most.")
ORDER = flags.DEFINE_list("moments", [], "Of the kills of a run, in order; a random order if none.")
SEED = flags.DEFINE_integer("seed", 0, "Of the points.")

KILLS_OF_A_RUN = 4
# 30 steps with six checkpoints, each evaluated and ranked.
LONG = (
    "--gin.STEPS=30",
    "--gin.train.log_every_steps=1",
    "--gin.train.checkpoint_every_steps=5",
    "--gin.train.eval_every_steps=5",
    "--gin.train.keep_checkpoints=2",
    "--gin.train.keep_lowest=cross_entropy_nats_per_token",
    "--gin.train.show_examples=0",
    "--gin.train.eval_split=validation[:1]",
    "--gin.Cosine.warmup_steps=2",
)
TINY = (
    "--gin.BATCH_SIZE=4",
    "--gin.T5Config.embed_dim=16",
    "--gin.T5Config.mlp_dim=16",
    "--gin.T5Config.num_heads=2",
    "--gin.T5Config.head_dim=8",
    "--gin.T5Config.num_encoder_layers=1",
    "--gin.T5Config.num_decoder_layers=1",
)
TWO_WORKERS = ("--gin.train.data_workers=2",)
ONE_TASK = Setting(run_file="tests/ten_steps.gin", flags=LONG)
MIXTURE = Setting(run_file="gin/run/multitask.gin", flags=(*TINY, *LONG))


def with_workers(setting):
    """Returns a setting with two data workers."""
    return dataclasses.replace(setting, flags=(*setting.flags, *TWO_WORKERS))


SETTINGS = {
    "one task": ONE_TASK,
    "one task with workers": with_workers(ONE_TASK),
    "packed mixture": MIXTURE,
    "packed mixture with workers": with_workers(MIXTURE),
    "two processes": dataclasses.replace(MIXTURE, processes=2),
    "vectorized sweep": dataclasses.replace(
        ONE_TASK, sweep="Cosine.learning_rate=log(1e-4, 1e-2, 4)"
    ),
}
# Runs of each setting, 50 in all.
RUNS = dict(zip(SETTINGS, (15, 5, 12, 5, 4, 9), strict=True))
MOMENTS = ("starting", "restoring", "training", "evaluating", "saving")


@dataclasses.dataclass
class Whole:
    """An uninterrupted run: what it records, and when it did what."""

    content: list
    seconds: float
    start_seconds: float
    step_seconds: float
    evaluation_seconds: float
    reads_at_restore: int
    changes_of_a_save: int


def watched(setting, folder):
    """Returns the MODEL_DIR, of several the first, whose files mark moments."""
    return folder / "trials" / "0000" if setting.sweep else folder


def measure(bench, folder):
    """Runs a setting without interruption."""
    setting = bench.setting
    # Fills the cache of compiled programs.
    bench.attempt(folder / "first")
    started = time.monotonic()
    content, calls = bench.whole()
    seconds = time.monotonic() - started
    model_dir = watched(setting, folder / "whole")
    wrote = [
        c.seconds for c in calls if c.kind == "write" and c.path == f"{model_dir}/metrics.jsonl"
    ]
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").open()]
    gaps = collections.defaultdict(list)
    for (previous, line), gap in zip(itertools.pairwise(lines), np.diff(wrote), strict=True):
        kind = "evaluation" if line["split"] != "train" else "step"
        if previous["split"] == "train" and line["step"] > 1:
            gaps[kind].append(float(gap))
    began = min(c.seconds for c in calls)
    saves = [c for c in calls if "/checkpoints/" in c.path]
    restored = folder / "restored"
    shutil.copytree(folder / "whole", restored)
    bench.attempt(restored, Fault(under=checkpoints_of(setting, restored), calls=("read",)))
    # A complete sweep restores nothing; half of its trials read about as much as this.
    reads = len(calls_in(bench.log)) or 100
    shutil.rmtree(restored)
    return Whole(
        content=content,
        seconds=seconds,
        start_seconds=wrote[0] - began,
        step_seconds=statistics.median(gaps["step"]),
        evaluation_seconds=statistics.median(gaps["evaluation"]),
        reads_at_restore=reads,
        changes_of_a_save=len(saves) // 6,
    )


def checkpoints_of(setting, folder):
    """Returns the directory below which checkpoints are read and written."""
    return folder / "trials" if setting.sweep else folder / "checkpoints"


def draw(moment, rng, setting, folder, whole):
    """Returns a kill at a random point of a moment of the next attempt of a run.

    Until it has a checkpoint, a run restores nothing and is killed while it starts.
    """
    model_dir = watched(setting, folder)
    is_resumed = any(checkpoints_of(setting, folder).glob("**/about"))
    metrics = {"under": model_dir / "metrics.jsonl", "calls": ("write",)}
    if moment == "restoring" and is_resumed:
        at = int(rng.integers(1, whole.reads_at_restore + 1))
        return Fault(under=checkpoints_of(setting, folder), calls=("read",), at=at)
    if moment == "saving":
        at = int(rng.integers(1, 2 * whole.changes_of_a_save))
        return Fault(under=checkpoints_of(setting, folder), at=at)
    if moment == "evaluating":
        # Before the first evaluation nothing is written; the record of its fifth step comes last.
        at = 5 if is_resumed else 6
        delay = float(rng.uniform(0, whole.evaluation_seconds))
        return Fault(**metrics, at=at, delay=delay)
    if moment == "training":
        delay = float(rng.uniform(0, whole.step_seconds))
        return Fault(**metrics, at=int(rng.integers(1, 9)), delay=delay)
    delay = float(rng.uniform(0, whole.start_seconds))
    return Fault(under=model_dir / "attempts.jsonl", calls=("write",), at=1, delay=delay)


def repeated_steps(setting: Setting, folder: pathlib.Path) -> int:
    """Returns how many recorded steps the next attempt repeats; of a sweep, the most of a trial."""
    if setting.sweep and not (folder / "trials").exists():
        return 0
    most = 0
    for model_dir in setting.model_dirs(folder):
        steps = [line["step"] for line in read_metrics(model_dir) if line["split"] == "train"]
        saved = StoredCheckpoints(model_dir / FOLDER).steps()
        most = max(most, max(steps, default=0) - max(saved, default=0))
    return most


def try_moments(bench, number, whole, folder, entropy):
    """Kills a run several times, lets it end, and returns what was found."""
    rng = np.random.default_rng(entropy)
    run = folder / f"run_{number}"
    shutil.rmtree(run, ignore_errors=True)
    kills, spent = [], 0.0
    drawn = map(str, rng.permutation(np.array(MOMENTS))[:KILLS_OF_A_RUN])
    for moment in ORDER.value or drawn:
        fault = draw(moment, rng, bench.setting, run, whole)
        ended = bench.attempt(run, fault)
        seconds = max(each.seconds for each in ended)
        spent += seconds
        kills.append(
            {
                "moment": "starting" if fault.under.name == "attempts.jsonl" else moment,
                "file": fault.under.name,
                "calls": "changes" if fault.calls == CHANGES else ",".join(fault.calls),
                "at": fault.at,
                "delay_seconds": round(fault.delay, 4),
                "killed": any(each.status == -9 for each in ended),
                "repeated_steps": repeated_steps(bench.setting, run),
                "seconds": round(seconds, 2),
            }
        )
    started = time.monotonic()
    differing = bench.resume(run, whole.content)
    spent += time.monotonic() - started
    shutil.rmtree(run, ignore_errors=not differing)
    count = sum(kill["killed"] for kill in kills)
    return {
        "kills": kills,
        "killed": count,
        "differing": differing[:10],
        "seconds": round(spent, 2),
        "seconds_lost_per_kill": round((spent - whole.seconds) / max(count, 1), 2),
    }


def runs_of(name):
    """Returns the numbers of the runs of a setting."""
    return range(min(RUNS[name], RUNS_AT_MOST.value))


def main(_):
    folder = folder_of("moments")

    def job(name, number, whole):
        def work(server, own):
            entropy = (SEED.value, list(SETTINGS).index(name), number)
            return try_moments(Bench(SETTINGS[name], server, own), number, whole, own, entropy)

        return named(name, number), work

    def named(name, number):
        return {"setting": name, "run": number, "seed": SEED.value}

    for name in ONLY.value or SETTINGS:
        if all(is_known("moments", named(name, number)) for number in runs_of(name)):
            continue
        server = start_server(folder / "whole")
        own = folder / name.replace(" ", "_")
        shutil.rmtree(own, ignore_errors=True)
        whole = measure(Bench(SETTINGS[name], server, own), own)
        server.close()
        print(name, dataclasses.replace(whole, content=[]), flush=True)
        run_all("moments", [job(name, number, whole) for number in runs_of(name)])


if __name__ == "__main__":
    app.run(main)
