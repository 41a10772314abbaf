"""Kills a run of ten steps before every change of a file, lets every call fail, and resumes it.

    python -m experiments.kill_test.calls --work=FOLDER

Appends a JSON object to the results for each run; continues after an interruption.
"""

import dataclasses
import shutil
import time

from absl import app, flags

from experiments.kill_test.runs import folder_of, run_all, start_server
from tests.faults import Fault, calls_in
from tests.kills import Bench, Setting, complaints, dropped_views

EVERY = flags.DEFINE_integer("every", 1, "Try only each n-th call.")
FAULTS = flags.DEFINE_multi_enum("faults", ["kills", "errors"], ["kills", "errors"], "Which.")

SHORT = Setting(run_file="tests/ten_steps.gin")
# Calls that fail in a run of ten steps: name, kinds of calls, error, whether all later calls fail.
ERRORS = (
    ("full disk", ("create", "write"), "ENOSPC", True),
    ("failing write", ("write",), "EIO", False),
    ("failing sync", ("sync",), "EIO", False),
    ("failing rename", ("rename",), "EIO", False),
)
READ_ERROR = ("failing read at restore", ("read",), "EIO", False)


@dataclasses.dataclass
class Whole:
    """An uninterrupted run of ten steps: what it records, in how many seconds, and its calls."""

    content: list
    seconds: float
    changes: list
    reads_at_restore: int


def measure(server, folder):
    """Runs ten steps without faults, and prepares the first half of them in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    # Fills the cache of compiled programs.
    Bench(SHORT, server, folder / "first").whole()
    started = time.monotonic()
    content, changes = Bench(SHORT, server, folder).whole()
    seconds = time.monotonic() - started
    half = dataclasses.replace(SHORT, flags=("--gin.train.total_steps=5",))
    bench = Bench(half, server, folder)
    bench.attempt(folder / "half")
    shutil.copytree(folder / "half", folder / "restored")
    fault = Fault(under=folder / "restored" / "checkpoints", calls=("read",))
    bench.attempt(folder / "restored", fault)
    return Whole(content, seconds, changes, len(calls_in(bench.log)))


def try_change(bench, at, whole, folder):
    """Kills a run of ten steps before one change, and resumes it."""
    run = folder / f"change_{at}"
    shutil.rmtree(run, ignore_errors=True)
    (ended,) = bench.attempt(run, Fault(under=run, at=at))
    call = next((c for c in calls_in(bench.log) if c.number == at), None)
    resumed = time.monotonic()
    differing = bench.resume(run, whole.content)
    seconds = time.monotonic() - resumed
    shutil.rmtree(run, ignore_errors=not differing)
    return {
        **described(call, run),
        "killed": int(ended.status == -9),
        "differing": differing[:10],
        "seconds": round(ended.seconds + seconds, 2),
        "seconds_lost_per_kill": round(ended.seconds + seconds - whole.seconds, 2),
    }


def try_error(bench, error, at, whole, folder, half):
    """Lets a call fail, in a run of ten steps or in its restart, and resumes the run."""
    name, kinds, then, lasting = error
    run = folder / f"{name.replace(' ', '_')}_{at}"
    shutil.rmtree(run, ignore_errors=True)
    under = run
    if name == READ_ERROR[0]:
        shutil.copytree(half, run)
        under = run / "checkpoints"
    fault = Fault(under=under, calls=kinds, at=at, then=then, lasting=lasting)
    (ended,) = bench.attempt(run, fault)
    call = next((c for c in calls_in(bench.log) if c.number == at), None)
    found = complaints(ended)
    differing = bench.resume(run, whole.content, views=not dropped_views(ended))
    shutil.rmtree(run, ignore_errors=not (found or differing))
    return {
        **described(call, run),
        "status": ended.status,
        "printed": ended.err.replace(str(run), "MODEL_DIR").splitlines()[-3:],
        "complaints": found,
        "differing": differing[:10],
        "seconds": round(ended.seconds, 2),
    }


def described(call, run):
    """Returns kind, function and path of a call."""
    if call is None:
        return {"kind": None, "function": None, "path": None}
    path = call.path.removeprefix(f"{run}/")
    return {"kind": call.kind, "function": call.function, "path": path}


def main(_):
    folder = folder_of("calls")
    server = start_server(folder / "whole")
    whole = measure(server, folder / "measured")
    server.close()
    half = folder / "measured" / "half"

    def kill(at):
        def work(server, own):
            return try_change(Bench(SHORT, server, own), at, whole, own)

        return {"fault": "kill", "at": at}, work

    def fail(error, at):
        def work(server, own):
            return try_error(Bench(SHORT, server, own), error, at, whole, own, half)

        return {"fault": error[0], "at": at}, work

    def numbers(count):
        return range(1, count + 1, EVERY.value)

    def spread(job):
        # An order in which the first few are spread over all.
        at = job[0]["at"]
        return at % 8, at

    jobs = []
    if "kills" in FAULTS.value:
        jobs += sorted((kill(at) for at in numbers(len(whole.changes))), key=spread)
    if "errors" in FAULTS.value:
        counts = [(e, sum(c.kind in e[1] for c in whole.changes)) for e in ERRORS]
        counts.append((READ_ERROR, whole.reads_at_restore))
        errors = (fail(error, at) for error, count in counts for at in numbers(count))
        jobs += sorted(errors, key=spread)
    run_all("calls", jobs)


if __name__ == "__main__":
    app.run(main)
