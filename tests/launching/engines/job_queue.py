"""An engine from outside the package: a queue of job files, worked off by a process of its own.

`FOLDER/jobs/0003.job` is a trial that waits, `0003.running` one that runs, with the process id of
its `t5lite launch trial` inside. The worker outlives the launcher and ends when no job waits.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

from t5lite.launching.engines.engine import Submission
from t5lite.launching.engines.resources import Resources, resource, resources
from t5lite.launching.engines.watching import WatchingEngine
from t5lite.launching.processes import LocalProcesses, t5lite_command

RESTART_EXIT = 42


@resources
class JobQueueResources(Resources):
    """What a trial gets from the queue."""

    niceness: int | None = resource("Niceness of the trial's processes; 0 if not given.")


class JobQueueEngine(WatchingEngine):
    """Puts trials into the queue of the launch's folder, and starts a worker for it."""

    resources_type = JobQueueResources
    # The worker restarts a trial by putting its job back.
    restarts = False

    @property
    def jobs(self):
        return pathlib.Path(self.launch.folder) / "jobs"

    def job(self, number):
        return t5lite_command(
            [
                "launch",
                "trial",
                self.launch.name,
                f"--dir={self.jobs.parent.parent}",
                f"--trial={number}",
            ]
        )

    def render(self, numbers):
        return "\n".join(f"{number:04d}.job: {self.job(number)}" for number in numbers)

    def submit(self, store, numbers, on_state):
        self.jobs.mkdir(exist_ok=True)
        queued = self.active()
        missing = [number for number in numbers if number not in queued]
        for number in missing:
            (self.jobs / f"{number:04d}.job").write_text("\n".join(self.job(number)))
        with (self.jobs / "worker.log").open("ab") as log:
            worker = [sys.executable, "-P", __file__, str(self.jobs)]
            subprocess.Popen(worker, stdout=log, stderr=log, start_new_session=True)
        return Submission(message=f"queued {len(missing)} jobs")

    def active(self):
        states = {".job": "queued", ".running": "started"}
        paths = self.jobs.iterdir() if self.jobs.exists() else ()
        return {int(p.stem): states[p.suffix] for p in paths if p.suffix in states}

    def cancel(self):
        for path in self.jobs.glob("*.job"):
            path.unlink()
        for path in self.jobs.glob("*.running"):
            # The worker finds no job to put back.
            pid = int(path.read_text())
            path.unlink()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return "emptied the queue"

    def start(self, number, arguments, log):
        nice = ["nice", f"-n{self.resources.niceness or 0}"]
        command = t5lite_command(arguments, parent=os.getpid())
        return LocalProcesses([([*nice, *command], {"JAX_NUM_PROCESSES": "1"})], log)


def work(jobs):
    while waiting := sorted(jobs.glob("*.job")):
        job = waiting[0]
        command = job.read_text()
        process = subprocess.Popen(command.split("\n"))
        running = job.with_suffix(".running")
        running.write_text(str(process.pid))
        job.unlink()
        if process.wait() == RESTART_EXIT and running.exists():
            job.write_text(command)
            time.sleep(1)
        running.unlink(missing_ok=True)


if __name__ == "__main__":
    work(pathlib.Path(sys.argv[1]))
