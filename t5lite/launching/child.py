"""`python -m t5lite.launching.child ...` is `t5lite ...` that ends with its parent.

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
    os.execv(sys.executable, [sys.executable, "-m", "t5lite", *sys.argv[1:]])
