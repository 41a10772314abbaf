"""What Orbax leaves behind when it stops reading at the first error."""

import subprocess
import sys

import pytest

# A coroutine of this name is dropped before it has begun.
DROPPED = """
import gc
from t5lite.training.late_errors import ignore_late_errors

async def {name}():
    pass

ignore_late_errors()
{name}()
gc.collect()
"""


def printed(name, *options):
    command = [sys.executable, *options, "-c", DROPPED.format(name=name)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


@pytest.mark.parametrize("options", [(), ("-W", "error")], ids=["warnings", "errors"])
def test_arrays_that_are_not_read_any_more_are_not_reported(options):
    assert printed("_read_array_index_and_device_put", *options) == ""
    assert "was never awaited" in printed("another", *options)
