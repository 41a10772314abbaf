"""Keeps the libraries' chatter off the terminal; t5lite's own remarks stay."""

import logging
import sys
import warnings


def quiet_libraries() -> None:
    """Shows t5lite's log lines plainly, and of the libraries only errors."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Orbax tells of deprecations inside itself, which no user can act on.
    warnings.filterwarnings("ignore", module=r"orbax\..*")
    log = logging.getLogger("t5lite")
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stdout))
