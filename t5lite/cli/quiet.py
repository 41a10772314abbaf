"""Keeps the libraries' chatter off the terminal; t5lite's own remarks stay."""

import logging
import warnings

import rich.console
import rich.logging


def quiet_libraries() -> None:
    """Shows t5lite's log lines plainly, and of the libraries only errors."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    log = logging.getLogger("t5lite")
    log.setLevel(logging.INFO)
    if not log.handlers:
        console = rich.console.Console(soft_wrap=True, highlight=False)
        log.addHandler(
            rich.logging.RichHandler(
                console=console, show_time=False, show_level=False, show_path=False
            )
        )
    # Orbax tells of deprecations inside itself, which no user can act on.
    warnings.filterwarnings("ignore", module=r"orbax\..*")
