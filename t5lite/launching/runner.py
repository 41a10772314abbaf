"""Runs the trials of a launch, several at a time, and watches each in a thread."""

import queue
import threading
from collections.abc import Callable, Sequence

from t5lite.launching.launch import Launch
from t5lite.launching.sweeps.trial_store import TrialStore
from t5lite.launching.trial import Starter, run_trial


def run_trials(
    launch: Launch,
    store: TrialStore,
    numbers: Sequence[int],
    starter: Starter,
    on_state: Callable[[int, str], None],
    stopping: threading.Event,
) -> dict[int, str]:
    """Runs trials, `launch.parallel` at a time, and returns how each of them ended.

    Args:
        starter: starts the attempts.
        on_state: called with a trial's number and "started", or how it ended.
        stopping: once set, running trials are asked to save, and no other trial starts.

    Raises:
        UserError: if the objective is not a metric of the run.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in numbers:
        waiting.put(number)
    ended: dict[int, str] = {}
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not stopping.is_set():
                number = waiting.get_nowait()
                on_state(number, "started")
                try:
                    ended[number] = run_trial(launch, store, number, starter, stopping)
                finally:
                    starter.release([number])
                on_state(number, ended[number])
        except queue.Empty:
            return
        except BaseException as error:
            errors.append(error)
            stopping.set()

    threads = [
        threading.Thread(target=work) for _ in range(min(launch.parallel or 1, len(numbers)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        # With a timeout: signals are handled in between.
        while thread.is_alive():
            thread.join(0.2)
    if errors:
        raise errors[0]
    return ended
