"""What a user gets who has no checkout: the wheel."""

import configparser
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.proof
def test_the_wheel_holds_every_module_and_gin_file(wheel):
    names = set(wheel.namelist())
    modules = {str(p.relative_to(ROOT)) for p in ROOT.glob("t5lite/**/*.py")}
    gin_files = {f"t5lite/{p.relative_to(ROOT)}" for p in ROOT.glob("gin/**/*.gin")}
    assert modules | gin_files <= names
    assert len(gin_files) >= 3


@pytest.mark.proof
def test_a_wheel_elsewhere_finds_its_gin_files(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = (
        "from t5lite import configurables; "
        "run, = configurables.load(['gin/run/quickstart.gin'], [], [], 'train'); "
        "print(run.batch_size, configurables.__file__)"
    )
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert str(tmp_path) in result.stdout, result.stderr


def test_nothing_heavy_is_required():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = config["options"]["install_requires"]
    assert not any(name in required for name in ("tensorflow>", "torch", "transformers", "git+"))


def test_gin_is_no_package():
    assert not list(ROOT.glob("gin/**/__init__.py"))


def test_no_file_names_a_directory_of_a_machine():
    """Documented paths are /data, /mnt and /tmp; nothing depends on where it was written."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    texts = {".py", ".md", ".gin", ".sh", ".cfg", ".toml", ".yaml", ".jsonl", ".cff"}
    pattern = re.compile(r"(?<![\w*}])/(?:home|root|Users|workspace|work)/\w+")
    found = [
        f"{name}: {match.group()}"
        for name in listed
        if pathlib.Path(name).suffix in texts and (ROOT / name).exists()
        if (match := pattern.search((ROOT / name).read_text()))
    ]
    assert not found
