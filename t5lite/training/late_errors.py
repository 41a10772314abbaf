"""Errors that Orbax and TensorStore print after a read or a write has failed with another one."""

import functools
import re
import sys
import warnings
from typing import Any

# Of arrays that are read or written at the same time, whose ends are reported to a closed loop.
_AFTERWARDS = ("Event loop is closed", "Encountered error while reading array index")
# Of arrays whose reading had not begun.
_NOT_READ = "coroutine '_read_array_index_and_device_put' was never awaited"


@functools.cache
def ignore_late_errors() -> None:
    """Keeps their tracebacks off the standard error from now on, because they come at any time.

    The first error is raised as usual.
    """
    report = sys.unraisablehook

    def report_unless_late(found: Any) -> None:
        # A warning is found here where warnings are errors.
        if not str(found.exc_value).startswith((*_AFTERWARDS, _NOT_READ)):
            report(found)

    sys.unraisablehook = report_unless_late
    warnings.filterwarnings("ignore", re.escape(_NOT_READ), RuntimeWarning)
