"""Progress of work that is not training: a bar on a terminal, lines elsewhere."""

import datetime
import time

import jax
import rich.console
import rich.progress

# Between two lines if there is no terminal.
LINE_SECONDS = 10.0


class WorkProgress:
    """Shows the progress of one piece of work after another, in the first process.

    It is a context manager that can be entered again for further work.

    Args:
        beginning: what a piece of work begins with, before any of it is done; None if it is done
            from the start.
    """

    def __init__(self, beginning: str | None = "compiling") -> None:
        self._beginning = beginning
        shown = jax.process_index() == 0
        self._console = rich.console.Console(
            stderr=True, quiet=not shown, highlight=False, soft_wrap=True
        )
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.MofNCompleteColumn(),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
            transient=True,
            # Results go to the standard output unchanged.
            redirect_stdout=False,
        )
        self._what: str | None = None
        self._task = rich.progress.TaskID(0)

    def __enter__(self) -> "WorkProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if self._what is not None:
            self._bar.remove_task(self._task)
        self._what = None

    def log(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, markup=False)

    def report(self, what: str, done: int, total: int | None) -> None:
        """Shows how much of a piece of work is done; `total` is None if unknown.

        The first call for a piece of work sets its start. Until something is done it shows what
        the work begins with.
        """
        now = time.perf_counter()
        if what != self._what:
            if self._what is not None:
                self._bar.remove_task(self._task)
            begun = what if self._beginning is None else f"{what}: {self._beginning}"
            self._task = self._bar.add_task(begun, total=total, completed=done)
            if self._bar.disable and self._beginning is not None:
                self.log(begun)
            self._what = what
            self._first = done
            self._started = now
            self._next_line = now + LINE_SECONDS
            return
        self._bar.update(self._task, completed=done, total=total, description=what)
        if self._bar.disable and now >= self._next_line and done > self._first:
            self._next_line = now + LINE_SECONDS
            rate = (done - self._first) / (now - self._started)
            share = f"{done:,}"
            left = ""
            if total is not None:
                share += f"/{total:,}"
                seconds = datetime.timedelta(seconds=round((total - done) / rate))
                left = f"  {seconds} left"
            speed = f"{rate:,.1f}" if rate >= 1 else f"{rate:.2g}"
            self.log(f"{what}: {share}  {speed} per second{left}")
