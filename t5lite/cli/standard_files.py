"""The standard input, output and error of the process, also where its parent has closed them."""

import os
import sys


def open_standard_files() -> None:
    """Opens closed standard files on /dev/null, as after `t5lite train ... >&-`.

    The next file that is opened would become the standard output otherwise, and libraries would
    write into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is the one that is closed.
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == number, (opened, number)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
