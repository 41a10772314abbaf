"""Trials as tasks of a Slurm job array; Slurm starts, preempts and requeues them."""

import os
import pathlib
import re
import shlex
import threading
from collections.abc import Sequence
from typing import IO, Any

from t5lite.core.errors import UserError
from t5lite.core.files import write_atomically
from t5lite.core.records import ANYTHING, Kind, Schema, integer, list_of, read_json_lines
from t5lite.core.run_directory import append_record
from t5lite.launching.engines.engine import OnState, Submission
from t5lite.launching.engines.programs import call_program, decode_output
from t5lite.launching.engines.resources import Resources, resource, resources
from t5lite.launching.engines.script_text import check_launch_name, check_script_path
from t5lite.launching.engines.shipping import launch_file
from t5lite.launching.engines.watching import WatchingEngine
from t5lite.launching.launch import TRIALS_FOLDER, Launch
from t5lite.launching.processes import LocalProcesses, ProcessGroup, t5lite_command
from t5lite.launching.sweeps.trial_store import TrialStore

BATCH_FILE = "job.sbatch"
JOBS_FILE = "jobs.jsonl"
# A line of `jobs.jsonl`.
JOB_SCHEMA = Schema(
    required={
        "job": Kind("a job id", lambda value: isinstance(value, str) and value.isalnum()),
        "trials": list_of(integer(0)),
    }
)
# What `squeue --json` prints.
_JOB = Schema(required={"job_state": ANYTHING, "array_job_id": ANYTHING})
_QUEUE = Schema(required={"jobs": list_of(_JOB.kind)}).kind
# States of a job that has not ended.
LIVE_STATES = (
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "CONFIGURING",
    "COMPLETING",
    "REQUEUED",
    "PREEMPTED",
)
PARTITION = r"[A-Za-z0-9_][A-Za-z0-9_.,+-]*"
TIME_LIMIT = r"(\d+-)?\d+(:\d+){0,2}"


@resources
class SlurmResources(Resources):
    """What a trial gets from Slurm."""

    nodes: int | None = resource("Nodes of each trial; 1 if not given.")
    processes: int | None = resource("JAX processes on each node; 1, or one a GPU, if not given.")
    gpus: int | None = resource("GPUs on each node.")
    time_limit: str | None = resource(
        "Time limit of a job, as in 12:00:00; two minutes before it the trial saves and requeues.",
        pattern=TIME_LIMIT,
        rule="a time such as 30, 12:00:00 or 2-12:00:00",
    )
    options: tuple[str, ...] = resource(
        "A further option of the batch file, as in --options=--account=me; may be repeated.",
        default=(),
        pattern=r"-\S.*",
        rule="an option of sbatch on one line, as in --options=--account=me",
    )


class SlurmEngine(WatchingEngine):
    """Submits a job array whose tasks run `t5lite launch trial`."""

    resources_type = SlurmResources
    # Slurm restarts: the task goes back into the queue.
    restarts = False

    def __init__(self, launch: Launch, target: str, resources: SlurmResources) -> None:
        super().__init__(launch, target, resources)
        self._folder = pathlib.Path(launch.folder)

    def render(self, numbers: Sequence[int]) -> str:
        """Returns the batch file whose array runs these trials.

        Raises:
            UserError: for text that would change the meaning of the file.
        """
        self._check_text()
        given = self.resources
        options = [f"--partition={self.target}"] if self.target else []
        if given.gpus:
            options.append(f"--gpus-per-node={given.gpus}")
        if given.time_limit:
            # SIGTERM reaches the processes two minutes before; they save, and the task requeues.
            options += [f"--time={given.time_limit}", "--signal=TERM@120"]
        options += given.options
        at_once = f"%{self.launch.parallel}" if self.launch.parallel else ""
        # Slurm expands % in the names of output files.
        outputs = str(self._folder).replace("%", "%%")
        trial = t5lite_command(
            ["launch", "trial", self.launch.name, f"--dir={self._folder.parent}"]
        )
        return (
            launch_file("slurm.sbatch")
            .read_text()
            .format(
                name=self.launch.name,
                array=_ranges(numbers) + at_once,
                nodes=given.nodes or 1,
                processes=given.processes or given.gpus or 1,
                working_dir=shlex.quote(self.launch.working_dir),
                output=shlex.quote(f"{outputs}/{TRIALS_FOLDER}/%a.slurm.txt"),
                options="\n".join(f"#SBATCH {option}" for option in options),
                command=shlex.join(trial),
            )
        )

    def _check_text(self) -> None:
        """Raises a UserError for text outside the resources that no quoting makes safe."""
        if self.target and not re.fullmatch(PARTITION, self.target):
            raise UserError(
                "--on=slurm:PARTITION needs a partition, or several with commas between them, got "
                f"{self.target!r}"
            )
        check_launch_name(self.launch.name)
        # In options of a batch file Slurm gives a backslash a meaning of its own.
        check_script_path("--dir", self.launch.folder, forbidden="\\")
        check_script_path("the current directory", self.launch.working_dir, forbidden="\\")

    def check(self, numbers: Sequence[int]) -> str:
        """Lets Slurm validate the job without submitting it, and returns its remark.

        Raises:
            UserError: if Slurm rejects it.
        """
        return call_program(["sbatch", "--test-only"], self.render(numbers)).strip()

    def submit(self, store: TrialStore, numbers: Sequence[int], on_state: OnState) -> Submission:
        """Submits the trials that are not in Slurm already."""
        del store, on_state
        queued = self.active()
        missing = [number for number in numbers if number not in queued]
        if not missing:
            return Submission(message=f"{self.launch.name}: all remaining trials are in Slurm")
        batch = self.render(missing)
        write_atomically(self._folder / BATCH_FILE, batch)
        job = call_program(["sbatch", "--parsable"], batch).strip().partition(";")[0]
        append_record(self._folder / JOBS_FILE, job=job, trials=missing)
        return Submission(
            message=f"submitted as job {job}; t5lite launch status {self.launch.reference}"
        )

    def active(self) -> dict[int, str]:
        """Returns the trials whose tasks have not ended, and their states in Slurm."""
        jobs = set(self._jobs())
        if not jobs:
            return {}
        found: dict[int, str] = {}
        listed = call_program(["squeue", "--states=all", "--json"])
        for job in decode_output("squeue", listed, _QUEUE)["jobs"]:
            state = job["job_state"]
            state = state[0] if isinstance(state, list) else state
            if str(_number(job["array_job_id"])) not in jobs or state not in LIVE_STATES:
                continue
            # Pending tasks are one entry with all their numbers.
            text = job.get("array_task_string") or ""
            for each in _numbers(text) if text else [_number(job["array_task_id"])]:
                found[each] = state.lower()
        return found

    def _jobs(self) -> list[str]:
        """Returns the ids of all jobs that were submitted for the launch."""
        path = self._folder / JOBS_FILE
        return [line["job"] for line in read_json_lines(path, JOB_SCHEMA, "correct or delete it")]

    def cancel(self) -> str:
        """Cancels the launch's jobs."""
        jobs = sorted(set(self._jobs())) if self.active() else []
        if not jobs:
            return "has no job"
        call_program(["scancel", *jobs])
        return f"cancelled {', '.join(jobs)}"

    def run_task(self, store: TrialStore, number: int, stopping: threading.Event) -> str:
        """Runs one attempt at a trial in its task of the array; requeues the task if due."""
        state = super().run_task(store, number, stopping)
        if state == "stopped":
            call_program(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
        return state

    def start(self, number: int, arguments: Sequence[str], log: IO[bytes]) -> ProcessGroup:
        """Starts the processes of an attempt on the nodes of the job."""
        del number
        return _SlurmStep([(["srun", "--kill-on-bad-exit=1", *t5lite_command(arguments)], {})], log)


class _SlurmStep(LocalProcesses):
    """A job step started by srun, which takes a SIGTERM of its own as an order to kill."""

    def stop(self) -> None:
        """Asks the tasks to save and end."""
        call_program(["scancel", "--signal=TERM", os.environ["SLURM_JOB_ID"]])


def _number(value: Any) -> int:
    """Returns a number of squeue's JSON, which newer releases wrap in an object."""
    return int(value["number"] if isinstance(value, dict) else value)


def _ranges(numbers: Sequence[int]) -> str:
    """Returns task numbers in Slurm's notation.

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
    """Parses what `_ranges` returns.

    >>> _numbers("0-2,5%4")
    [0, 1, 2, 5]
    """
    numbers: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
