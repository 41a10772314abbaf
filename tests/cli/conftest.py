import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def t5lite(one_device):
    """Runs a command in the checkout, as a process with one device."""

    def start(*arguments, environment=None, **options):
        return subprocess.Popen(
            [sys.executable, "-m", "t5lite", *arguments],
            cwd=ROOT,
            env={**os.environ, **one_device, "COLUMNS": "200", **(environment or {})},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(*arguments, **options):
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    run.start = start
    return run
