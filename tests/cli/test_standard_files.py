import subprocess
import sys

import pytest

# Without the fix, the file would become the standard output.
CODE = """
import sys
from t5lite.cli.standard_files import open_standard_files
open_standard_files()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    print("a line")
    print("another", file=sys.stderr)
    sys.stdout.flush()
    file.write(f"{sys.stdin.read()!r}")
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_files_are_opened(closed, tmp_path):
    path = tmp_path / "file"
    command = f'exec "$0" -c "$1" "$2" {closed}'
    words = ["sh", "-c", command, sys.executable, CODE, str(path)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert path.read_text() == "''"
    assert done.stdout == ("" if ">&-" in closed.replace("2>&-", "") else "a line\n")
