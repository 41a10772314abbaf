"""`python -P child.py PID ARGUMENT...` runs `t5lite ARGUMENT...`, which ends with process PID.

Run by path, not by `-m`: the working directory must not come before the standard library, or a file
such as `queue.py` beside the user's run files would replace a module of it. The command itself
appends the working directory, so that modules that gin names as "module:function" are found.

With PID 0 the command outlives its parent. Otherwise it is asked to stop when PID dies: trainers
whose launcher was killed would run unwatched.
"""

import ctypes
import os
import pathlib
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def add_package_path() -> None:
    """Makes this copy of t5lite importable, after the standard library."""
    root = str(pathlib.Path(__file__).resolve().parents[2])
    if root not in sys.path:
        packages = [i for i, path in enumerate(sys.path) if path.endswith("-packages")]
        sys.path.insert(packages[0] if packages else len(sys.path), root)


if __name__ == "__main__":
    parent = int(sys.argv[1])
    if parent:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        # The parent may have died before the request.
        if os.getppid() != parent:
            sys.exit(f"the launcher, process {parent}, is gone")
    add_package_path()
    del sys.argv[1]
    runpy.run_module("t5lite", run_name="__main__", alter_sys=True)
