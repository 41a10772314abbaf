"""Trials as tasks of a Slurm job array; Slurm starts, preempts and requeues them."""

import json
import os
import pathlib
import shlex
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from t5lite.core.files import write_atomically
from t5lite.core.run_directory import append_record, read_records
from t5lite.launching.engines.outside import call
from t5lite.launching.engines.shipping import template
from t5lite.launching.launch import TRIALS, Launch
from t5lite.launching.sweeps.study import Study
from t5lite.launching.trial import Group, Processes, run_trial

SCRIPT, JOBS = "job.sbatch", "jobs.jsonl"
# States of a job that Slurm has not done with.
ALIVE = ("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "PREEMPTED")


class Job:
    """The job that this process is in, as an engine."""

    restarts = attaches = False

    def start(self, number: int, arguments: Sequence[str], log: IO[bytes]) -> Group:
        """Starts a trial's processes on the nodes of the job."""
        del number
        command = ["srun", "--kill-on-bad-exit=1", sys.executable, "-m", "t5lite", *arguments]
        return _Step([(command, {})], log)

    def end(self, number: int) -> None:
        """Slurm takes back what was held."""


def text(launch: Launch, numbers: Sequence[int]) -> str:
    """Returns the batch file whose array runs these trials."""
    partition = launch.engine.partition(":")[2]
    wanted = launch.resources
    options = [f"--partition={partition}"] if partition else []
    if gpus := wanted.get("gpus"):
        options.append(f"--gpus-per-node={gpus}")
    if time_limit := wanted.get("time_limit"):
        # The processes are told two minutes before; they save and are put back into the queue.
        options += [f"--time={time_limit}", "--signal=TERM@120"]
    options += list(wanted.get("options") or ())
    folder = pathlib.Path(launch.folder)
    at_once = f"%{launch.parallel}" if launch.parallel else ""
    return (
        template("slurm.sbatch")
        .read_text()
        .format(
            name=launch.name,
            array=_ranges(numbers) + at_once,
            nodes=wanted.get("nodes") or 1,
            processes=wanted.get("processes") or wanted.get("gpus") or 1,
            working_dir=shlex.quote(launch.working_dir),
            output=shlex.quote(f"{folder}/{TRIALS}/%a.slurm.txt"),
            dir=shlex.quote(str(folder.parent)),
            options="\n".join(f"#SBATCH {option}" for option in options),
            python=shlex.quote(sys.executable),
        )
    )


def check(launch: Launch, numbers: Sequence[int]) -> str:
    """Has Slurm look at the job without submitting it, and returns what it says.

    Raises:
        UserError: where it would refuse it.
    """
    return call(["sbatch", "--test-only"], text(launch, numbers)).strip()


def submit(launch: Launch, study: Study, numbers: Sequence[int]) -> str:
    """Submits those of the trials that Slurm does not have already, and tells of it.

    Call it where nobody else submits the launch.
    """
    del study
    folder = pathlib.Path(launch.folder)
    queued = active(launch)
    missing = [number for number in numbers if number not in queued]
    if not missing:
        return f"{launch.name}: Slurm has all that is left"
    batch = text(launch, missing)
    write_atomically(folder / SCRIPT, batch)
    job = call(["sbatch", "--parsable"], batch).strip().partition(";")[0]
    append_record(folder / JOBS, job=job, trials=missing)
    return f"submitted as job {job}; t5lite launch status {launch.reference}"


def active(launch: Launch) -> dict[int, str]:
    """Returns the trials that Slurm has not done with, and their states there."""
    jobs = {line["job"] for line in read_records(pathlib.Path(launch.folder) / JOBS)}
    if not jobs:
        return {}
    found: dict[int, str] = {}
    for job in json.loads(call(["squeue", "--states=all", "--json"]))["jobs"]:
        number, identity = job["array_task_id"], job["array_job_id"]
        state = job["job_state"]
        state = state[0] if isinstance(state, list) else state
        if str(_plain(identity)) not in jobs or state not in ALIVE:
            continue
        # Tasks that wait are one entry, with all their numbers.
        text = job.get("array_task_string") or ""
        for each in _numbers(text) if text else [_plain(number)]:
            found[each] = state.lower()
    return found


def cancel(launch: Launch) -> str:
    """Takes the launch's jobs out of Slurm, and tells of it."""
    lines = read_records(pathlib.Path(launch.folder) / JOBS)
    jobs = sorted({line["job"] for line in lines}) if active(launch) else []
    if not jobs:
        return "has no job"
    call(["scancel", *jobs])
    return f"cancelled {', '.join(jobs)}"


def run_task(launch: Launch, study: Study, number: int, stopping: threading.Event) -> str:
    """Runs one trial within its task of the array, once; requeues the task where that is due."""
    state = run_trial(launch, study, number, Job(), stopping)
    if state == "stopped":
        call(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
    return state


class _Step(Processes):
    """What srun started; it takes a SIGTERM of its own for an order to kill."""

    def stop(self) -> None:
        """Asks the tasks to save and end."""
        call(["scancel", "--signal=TERM", os.environ["SLURM_JOB_ID"]])


def _plain(number: Any) -> int:
    """Newer releases tell numbers as objects."""
    return int(number["number"] if isinstance(number, dict) else number)


def _ranges(numbers: Sequence[int]) -> str:
    """Writes numbers as Slurm does.

    >>> _ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def _numbers(text: str) -> list[int]:
    """Reads what `_ranges` writes.

    >>> _numbers("0-2,5%4")
    [0, 1, 2, 5]
    """
    numbers: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
