"""An agreement of all processes on the step after which they stop."""

import contextlib
import itertools
import threading
from typing import Any

import jax

_STOP = "stop"
_END = "end"
# JAX has no way to wait without a limit.
TEN_YEARS_MS = 10 * 366 * 24 * 3600 * 1000

_numbers = itertools.count()


class AgreedStop:
    """The step after which all processes stop, once one of them has asked for it; close it.

    The protocol is that of JAX's preemption service: no process begins another step while all tell
    how many they have taken, and the last step is the one after the largest of these numbers.

    NOTE: the function of JAX holds the interpreter while it waits for the other processes. Their
    answers pass through threads of Python (`peers.lasting_address`), which then cannot run.
    """

    def __init__(self) -> None:
        # NOTE: JAX has no public access to the service through which its processes meet.
        from jax._src.distributed import global_state

        self._client: Any = global_state.client
        # Equal in all processes, which make these objects in the same order.
        self._name = f"t5lite/stop/{next(_numbers)}"
        # Held while the processes agree.
        self._lock = threading.Lock()
        self._steps = 0
        self._last: int | None = None
        self._has_asked = False
        self._thread = threading.Thread(target=self._agree, name="agreed stop", daemon=True)
        self._thread.start()

    def is_last_step(self, requested: bool) -> bool:
        """Counts a step, and returns whether all processes stop after it.

        Args:
            requested: whether this process is to stop.
        """
        if requested and not self._has_asked:
            self._has_asked = True
            self._decide(_STOP)
        with self._lock:
            self._steps += 1
            return self._steps == self._last

    def close(self) -> None:
        """Ends the agreement. A thread that still waited would abort the end of the process."""
        self._decide(_END)
        self._thread.join()

    def _decide(self, what: str) -> None:
        """Tells all processes, unless one of them has decided before."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{self._name}/decision", what)

    def _agree(self) -> None:
        # An error means that the first process is lost, which `peers` reports.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            decision = self._client.blocking_key_value_get(f"{self._name}/decision", TEN_YEARS_MS)
            if decision == _END:
                return
            with self._lock:
                self._client.key_value_set(
                    f"{self._name}/steps/{jax.process_index()}", str(self._steps)
                )
                self._client.wait_at_barrier(f"{self._name}/told", TEN_YEARS_MS)
                told = self._client.key_value_dir_get(f"{self._name}/steps/")
                self._last = 1 + max(int(steps) for _, steps in told)
