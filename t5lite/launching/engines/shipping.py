"""The code of a launch, packed for machines that have none.

`FOLDER/code.tar.gz` holds t5lite as a wheel, the gin and Python files below the folder in which the
launch was made, the script that workers run, and the script that sets a worker up. It is packed
once: all attempts at all trials run the same code.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

import t5lite
from t5lite.core.errors import UserError
from t5lite.launching.launch import Launch

CODE_ARCHIVE = "code.tar.gz"
SHIPPED_SUFFIXES = (".gin", ".py")
# The files of a checkout from which a wheel is built.
WHEEL_SOURCES = ("t5lite", "gin", "launch", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
MAX_SHIPPED_BYTES = 64 * 1024 * 1024
# Workers expand the wheel's name in a shell.
WHEEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*\.whl")


def launch_file(name: str) -> pathlib.Path:
    """Returns a file of the folder launch/, in a checkout or installed."""
    package = pathlib.Path(t5lite.__file__).parent
    found = [p / "launch" / name for p in (package, package.parent)]
    return next(path for path in found if path.exists())


def check_shipped_files(launch: Launch) -> None:
    """Checks that workers will find every file that the flags name.

    Raises:
        UserError: naming the first flag whose file would be missing.
    """
    working_dir = pathlib.Path(launch.working_dir)
    shared = pathlib.Path(launch.folder).parent
    for word in launch.flags:
        flag, _, name = word.partition("=")
        if flag != "--gin_file":
            continue
        path = pathlib.Path(name)
        is_shared = path.is_absolute() and path.is_relative_to(shared)
        # A relative file that does not exist is one of the wheel's.
        inside = (working_dir / path).resolve().is_relative_to(working_dir.resolve())
        if not is_shared and (path.is_absolute() or not inside):
            raise UserError(
                f"workers would not find {word}: name a file below {working_dir} by its relative "
                f"path, or a file below {shared}"
            )


def setup_script(launch: Launch, own: str | None, default: str) -> pathlib.Path:
    """Returns the script that sets a worker up: the user's own, or a file of launch/.

    Raises:
        UserError: if the user's does not exist.
    """
    if not own:
        return launch_file(default)
    path = pathlib.Path(launch.working_dir) / own
    if not path.is_file():
        raise UserError(f"--setup must be a shell script, got {own!r}, which does not exist")
    return path


def check_wheel(launch: Launch, named: str | None) -> None:
    """Checks that `pack_code` finds a wheel, or a checkout to build one from, if it needs one.

    Raises:
        UserError: if it does not.
    """
    if (pathlib.Path(launch.folder) / CODE_ARCHIVE).exists():
        return
    if named:
        _named_wheel(launch, named)
    else:
        _checkout()


def pack_code(launch: Launch, *, setup: pathlib.Path, wheel: str | None) -> pathlib.Path:
    """Returns the packed code; the first call makes it.

    Args:
        setup: the script that sets a worker up.
        wheel: a wheel of t5lite; None to build one from this checkout.

    Raises:
        UserError: if t5lite is installed without its source and no wheel is given, or the files
            to ship are too large.
    """
    path = pathlib.Path(launch.folder) / CODE_ARCHIVE
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        wheel_path = _named_wheel(launch, wheel) if wheel else build_wheel(folder)
        part = path.with_name(f".{CODE_ARCHIVE}.part")
        with tarfile.open(part, "w:gz") as tar:
            tar.add(wheel_path, wheel_path.name)
            tar.add(launch_file("worker.sh"), "worker.sh")
            tar.add(setup, "setup.sh")
            working_dir = pathlib.Path(launch.working_dir)
            for file in _user_files(working_dir):
                tar.add(file, f"work/{file.relative_to(working_dir)}")
        part.replace(path)
    return path


def _named_wheel(launch: Launch, named: str) -> pathlib.Path:
    wheel = pathlib.Path(launch.working_dir) / named
    if not (wheel.is_file() and WHEEL_NAME.fullmatch(wheel.name)):
        raise UserError(f"--wheel must be the path of a wheel of t5lite, got {named!r}")
    return wheel


def build_wheel(folder: pathlib.Path) -> pathlib.Path:
    """Builds a wheel of this checkout in a folder, and returns it.

    Raises:
        UserError: if there is no checkout, or the build fails.
    """
    source = _checkout()
    # A build leaves files behind that would break a concurrent one.
    with tempfile.TemporaryDirectory() as scratch:
        for name in WHEEL_SOURCES:
            path = source / name
            copy = pathlib.Path(scratch) / name
            if path.is_dir():
                shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(path, copy)
        command = [sys.executable, "-P", "-m", "pip", "wheel", "--quiet", "--no-deps", scratch]
        done = subprocess.run(
            [*command, "--wheel-dir", str(folder)], capture_output=True, text=True
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip printed no reason"])[-1]
        raise UserError(f"building a wheel of t5lite failed: {reason}")
    return next(folder.glob("t5lite-*.whl"))


def _checkout() -> pathlib.Path:
    """Returns the checkout that this package is imported from."""
    source = pathlib.Path(t5lite.__file__).parent.parent
    if not (source / "setup.cfg").exists():
        raise UserError(
            "t5lite is installed without its source; name the wheel that it came from with --wheel"
        )
    return source


def _user_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the user's files that runs may read: those git knows or, without git, all."""
    patterns = [f"*{suffix}" for suffix in SHIPPED_SUFFIXES]
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    try:
        listed = subprocess.run(git, cwd=folder, capture_output=True, text=True, check=True)
        files = [folder / name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = [
            path
            for path in folder.rglob("*")
            if path.suffix in SHIPPED_SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
    files = [path for path in files if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if size > MAX_SHIPPED_BYTES:
        raise UserError(
            f"{folder} holds {size:,} bytes of gin and Python files, more than the "
            f"{MAX_SHIPPED_BYTES:,} bytes that are shipped; launch from the folder of your run "
            "files"
        )
    return sorted(files)
