"""`python -m t5lite.launching.child PID ...` is `t5lite ...` that ends with its parent, PID.

A launcher that is killed would leave trainers behind that nobody watches; they are asked to stop.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # It may have been killed before it could be asked for.
    if os.getppid() != int(sys.argv[1]):
        sys.exit(f"the launcher, process {sys.argv[1]}, is gone")
    os.execv(sys.executable, [sys.executable, "-m", "t5lite", *sys.argv[2:]])
