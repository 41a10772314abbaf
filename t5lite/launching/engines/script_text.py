"""Text that becomes part of a script: checked before it is quoted."""

import re

from t5lite.core.errors import UserError

# Names that shells, Slurm, Kubernetes labels and file systems all take unquoted.
LAUNCH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_launch_name(name: str) -> None:
    """Raises a UserError unless a launch's name is safe in scripts and file names."""
    if not LAUNCH_NAME.fullmatch(name):
        raise UserError(
            "--name must consist of letters, digits and . _ -, and start with a letter or digit, "
            f"got {name!r}"
        )


def check_script_path(owner: str, path: str, *, forbidden: str = "") -> None:
    """Raises a UserError if a path cannot be written on one line of a script.

    Args:
        owner: what the path is, in the error.
        forbidden: characters that have a meaning of their own there, even if quoted.
    """
    if not path.isprintable() or any(character in path for character in forbidden):
        also = f", without any of {' '.join(forbidden)}" if forbidden else ""
        raise UserError(f"{owner} must be one line of printable characters{also}, got {path!r}")
