import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def t5lite(data_dir, programs_dir):
    """Runs a command in the checkout; its data sets are those of the session."""
    usual = {**os.environ, "TFDS_DATA_DIR": data_dir, "COLUMNS": "200"}
    # Most processes compile what another has compiled before.
    usual |= {
        "JAX_COMPILATION_CACHE_DIR": str(programs_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }

    def start(*arguments, environment=None, **options):
        return subprocess.Popen(
            [sys.executable, "-m", "t5lite", *arguments],
            cwd=ROOT,
            env={**usual, **(environment or {})},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(*arguments):
        process = start(*arguments)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    run.start = start
    return run
