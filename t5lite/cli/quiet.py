"""Keeps the libraries' chatter off the terminal; t5lite's own remarks stay."""

import logging
import sys
import warnings
from typing import Any

from t5lite.training.late_errors import ignore_late_errors


def quiet_libraries() -> None:
    """Shows t5lite's log lines plainly; what the libraries log as errors they raise, too."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Orbax warns about its own deprecated code, which no user can change.
    warnings.filterwarnings("ignore", module=r"orbax\..*")
    ignore_late_errors()
    log = logging.getLogger("t5lite")
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        # Not stdout: with --json that is one document.
        log.addHandler(_CurrentStderr())


class _CurrentStderr(logging.StreamHandler[Any]):
    """Writes to the current `sys.stderr`, which rich replaces while it shows a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
