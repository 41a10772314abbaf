"""The code of a launch, packed for machines that have none.

`FOLDER/code.tar.gz` holds t5lite as a wheel, the gin and Python files below the folder where the
launch was made, the script that workers run, and the one that makes them ready. It is packed once:
all attempts at all trials run the same code.
"""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

import t5lite
from t5lite.core.errors import UserError
from t5lite.launching.launch import Launch

CODE = "code.tar.gz"
SHIPPED = (".gin", ".py")
# What a wheel is made of.
SOURCE = ("t5lite", "gin", "launch", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
MOST_BYTES = 64 * 1024 * 1024


def template(name: str) -> pathlib.Path:
    """Returns a file of the folder launch/, in a checkout or installed."""
    package = pathlib.Path(t5lite.__file__).parent
    found = [p / "launch" / name for p in (package, package.parent)]
    return next(path for path in found if path.exists())


def check_files(launch: Launch) -> None:
    """Raises a UserError where a file that the flags name would not be there on workers."""
    _setup_script(launch)
    working_dir, shared = pathlib.Path(launch.working_dir), pathlib.Path(launch.folder).parent
    for word in launch.flags:
        flag, _, name = word.partition("=")
        if flag != "--gin_file":
            continue
        path = pathlib.Path(name)
        is_shared = path.is_absolute() and path.is_relative_to(shared)
        # A relative one that is not there comes with t5lite.
        inside = (working_dir / path).resolve().is_relative_to(working_dir.resolve())
        if not is_shared and (path.is_absolute() or not inside):
            raise UserError(
                f"workers would not find {word}: name a file below {working_dir} by its relative "
                f"path, or one below {shared}"
            )


def _setup_script(launch: Launch) -> pathlib.Path:
    """Returns the script that makes a worker ready."""
    own = launch.resources.get("setup")
    if not own:
        return template("setup_image.sh" if launch.engine.startswith("gke") else "setup.sh")
    path = pathlib.Path(launch.working_dir) / own
    if not path.is_file():
        raise UserError(f"--setup must be a shell script, got {own!r}, which is not there")
    return path


def pack(launch: Launch) -> pathlib.Path:
    """Returns the packed code, which is made where it is not there yet.

    Raises:
        UserError: where t5lite is installed without its source and no wheel is named, or there is
            too much to ship.
    """
    path = pathlib.Path(launch.folder) / CODE
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _wheel(launch, pathlib.Path(scratch))
        part = path.with_name(f".{CODE}.part")
        with tarfile.open(part, "w:gz") as tar:
            tar.add(wheel, wheel.name)
            tar.add(template("worker.sh"), "worker.sh")
            tar.add(_setup_script(launch), "setup.sh")
            working_dir = pathlib.Path(launch.working_dir)
            for file in _files(working_dir):
                tar.add(file, f"work/{file.relative_to(working_dir)}")
        part.replace(path)
    return path


def _wheel(launch: Launch, scratch: pathlib.Path) -> pathlib.Path:
    named = launch.resources.get("wheel")
    if named:
        wheel = pathlib.Path(launch.working_dir) / named
        if not (wheel.is_file() and wheel.suffix == ".whl"):
            raise UserError(f"--wheel must be a wheel of t5lite, got {named!r}")
        return wheel
    return build_wheel(scratch)


def build_wheel(folder: pathlib.Path) -> pathlib.Path:
    """Builds a wheel of this checkout in a folder, and returns it.

    Raises:
        UserError: where there is no checkout, or it cannot be built.
    """
    source = pathlib.Path(t5lite.__file__).parent.parent
    if not (source / "setup.cfg").exists():
        raise UserError(
            "t5lite is installed without its source: name the wheel that it came from with --wheel"
        )
    # Builds leave things behind, which another one at the same time would trip over.
    with tempfile.TemporaryDirectory() as scratch:
        for name in SOURCE:
            path, copy = source / name, pathlib.Path(scratch) / name
            if path.is_dir():
                shutil.copytree(path, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(path, copy)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", scratch]
        done = subprocess.run(
            [*command, "--wheel-dir", str(folder)], capture_output=True, text=True
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"t5lite could not be packed as a wheel: {reason}")
    return next(folder.glob("t5lite-*.whl"))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """What runs may read of a user's: what git knows of or, without git, all that is there."""
    patterns = [f"*{suffix}" for suffix in SHIPPED]
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    try:
        listed = subprocess.run(git, cwd=folder, capture_output=True, text=True, check=True)
        files = [folder / name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = [
            path
            for path in folder.rglob("*")
            if path.suffix in SHIPPED
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
    files = [path for path in files if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if size > MOST_BYTES:
        raise UserError(
            f"{folder} holds {size:,} bytes of gin and Python files, more than the {MOST_BYTES:,} "
            "that are shipped: launch from the folder of your run files"
        )
    return sorted(files)
