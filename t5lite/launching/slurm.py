"""Trials as tasks of a Slurm job array; Slurm starts, preempts and requeues them."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

import t5lite
from t5lite.core.errors import UserError
from t5lite.core.files import write_whole
from t5lite.core.run_directory import append, read_records
from t5lite.launching.launch import Launch
from t5lite.launching.study import Study
from t5lite.launching.trial import Group, Processes, run_trial

SCRIPT, JOBS = "job.sbatch", "jobs.jsonl"
# States of a job that Slurm has not done with.
ALIVE = ("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "PREEMPTED")


def script(launch: Launch, numbers: Sequence[int]) -> str:
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
    return _template("slurm.sbatch").format(
        name=launch.name,
        array=_ranges(numbers) + at_once,
        nodes=wanted.get("nodes") or 1,
        processes=wanted.get("processes") or wanted.get("gpus") or 1,
        working_dir=launch.working_dir,
        folder=folder,
        dir=shlex.quote(str(folder.parent)),
        options="\n".join(f"#SBATCH {option}" for option in options),
        python=shlex.quote(sys.executable),
    )


def check(launch: Launch, numbers: Sequence[int]) -> str:
    """Has Slurm look at the job without submitting it, and returns what it says.

    Raises:
        UserError: where it would refuse it.
    """
    return _call(["sbatch", "--test-only"], script(launch, numbers)).strip()


def submit(launch: Launch, numbers: Sequence[int]) -> str | None:
    """Submits those of the trials that Slurm does not have already.

    Returns:
        The job's id; None where there was nothing to submit.
    """
    folder = pathlib.Path(launch.folder)
    queued = active(folder)
    missing = [number for number in numbers if number not in queued]
    if not missing:
        return None
    text = script(launch, missing)
    write_whole(folder / SCRIPT, text)
    job = _call(["sbatch", "--parsable"], text).strip().partition(";")[0]
    append(folder / JOBS, job=job, trials=missing)
    return job


def active(folder: pathlib.Path) -> dict[int, str]:
    """Returns the trials that Slurm has not done with, and their states there."""
    jobs = {line["job"] for line in read_records(folder / JOBS)}
    if not jobs:
        return {}
    found: dict[int, str] = {}
    for job in json.loads(_call(["squeue", "--states=all", "--json"]))["jobs"]:
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


def cancel(folder: pathlib.Path) -> list[str]:
    """Takes the launch's jobs out of Slurm, and returns those that were there."""
    jobs = sorted({line["job"] for line in read_records(folder / JOBS)}) if active(folder) else []
    if jobs:
        _call(["scancel", *jobs])
    return jobs


def run_task(launch: Launch, study: Study, number: int, stopping: threading.Event) -> str:
    """Runs one trial within its task of the array, once; requeues the task where that is due."""

    def start(arguments: Sequence[str], log: IO[bytes]) -> Group:
        command = ["srun", "--kill-on-bad-exit=1", sys.executable, "-m", "t5lite", *arguments]
        return _Step([(command, {})], log)

    state = run_trial(launch, study, number, start, stopping, restarts=False)
    if state == "stopped":
        _call(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
    return state


class _Step(Processes):
    """What srun started; it takes a SIGTERM of its own for an order to kill."""

    def stop(self) -> None:
        """Asks the tasks to save and end."""
        _call(["scancel", "--signal=TERM", os.environ["SLURM_JOB_ID"]])


def _call(command: Sequence[str], text: str | None = None) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is not there: this machine knows no Slurm; launch on a login node, or "
            "with --on=local"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} did not answer within 120 seconds") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        raise UserError(f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: ')}")
    # Where it would start a job --test-only tells of it as of an error.
    return done.stdout or done.stderr


def _template(name: str) -> str:
    package = pathlib.Path(t5lite.__file__).parent
    found = [p / "launch" / name for p in (package, package.parent)]
    return next(path for path in found if path.exists()).read_text()


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
