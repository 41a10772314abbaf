"""`python -m t5lite COMMAND` is `t5lite COMMAND`."""

import sys

# `python -m` puts the working directory first, where a file such as queue.py would replace a module
# of the standard library. `main` appends it, for modules that gin names as "module:function".
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

from t5lite.cli.main import main

if __name__ == "__main__":
    main()
