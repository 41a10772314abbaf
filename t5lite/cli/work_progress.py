"""How far work has come, for whoever waits for it."""

import datetime
import time

import jax
import rich.console
import rich.progress

# Between two lines where there is no terminal.
LINE_SECONDS = 10.0


class WorkProgress:
    """Shows how far work has come: a bar on a terminal, lines elsewhere; in the first process.

    A context, which may be entered again for other work.
    """

    def __init__(self) -> None:
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
            # Results go to the standard output as they are.
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

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, markup=False)

    def at(self, what: str, done: int, total: int | None) -> None:
        """Tells that so much of some work is done, None where nobody knows of how much.

        The first call for a piece of work says where it begins.
        """
        now = time.perf_counter()
        if what != self._what:
            if self._what is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total, completed=done)
            self._what, self._first, self._started = what, done, now
            self._next_line = now + LINE_SECONDS
            return
        self._bar.update(self._task, completed=done, total=total)
        if self._bar.disable and now >= self._next_line and done > self._first:
            self._next_line = now + LINE_SECONDS
            rate = (done - self._first) / (now - self._started)
            of, left = "", ""
            if total is not None:
                of = f"/{total:,}"
                seconds = datetime.timedelta(seconds=round((total - done) / rate))
                left = f"  {seconds} left"
            self.say(f"{what}: {done:,}{of}  {rate:,.1f} a second{left}")
