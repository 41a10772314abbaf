"""The steps of running trials: a bar for each on a terminal, a line now and then elsewhere."""

import sys
import threading
import time

import rich.console
import rich.progress

from t5lite.core.records import Schema, decode_record, integer
from t5lite.core.run_directory import METRICS
from t5lite.launching.launch import Launch

REFRESH_SECONDS = 1.0
STEP_LINE_SECONDS = 30.0
# The end of metrics.jsonl that holds its last whole line.
TAIL_BYTES = 16 * 1024
_STEP = Schema(required={"step": integer(0)})


class LaunchProgress:
    """Shows how far the trials are that this process watches; a context around `Engine.submit`."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._running: dict[int, rich.progress.TaskID] = {}
        self._ended = threading.Event()
        console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
        self._console = console
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.MofNCompleteColumn(),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            # States are printed above the bars, or into the file that stdout is.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> "LaunchProgress":
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._bars.stop()

    def on_state(self, number: int, state: str) -> None:
        """Follows a trial from "started" to its end."""
        if state == "started":
            self._running[number] = self._bars.add_task(
                f"trial {number}", total=self._launch.last_step
            )
        else:
            self._bars.remove_task(self._running.pop(number))

    def _refresh(self) -> None:
        last_line = time.monotonic()
        while not self._ended.wait(REFRESH_SECONDS):
            steps = {number: recorded_step(self._launch, number) for number in list(self._running)}
            for number, step in steps.items():
                if (task := self._running.get(number)) is not None:
                    self._bars.update(task, completed=step)
            if self._bars.disable and steps and time.monotonic() - last_line >= STEP_LINE_SECONDS:
                last_line = time.monotonic()
                total = self._launch.last_step
                of = "" if total is None else f"/{total}"
                shown = [f"trial {number}: step {step}{of}" for number, step in steps.items()]
                self._console.print(", ".join(shown), markup=False)


def recorded_step(launch: Launch, number: int) -> int:
    """Returns the step of the last record of a trial; 0 before the first."""
    path = launch.model_dir(number) / METRICS
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(decode_record(line, _STEP)["step"])
        except ValueError:
            # A line that is being written, or the end of a longer one.
            continue
    return 0
