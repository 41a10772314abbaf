"""Hostile text in every field: rejected by name on one line, or harmless in every script."""

import os
import shlex
import subprocess
import sys

import pytest

from t5lite.core.errors import UserError
from t5lite.core.run_directory import append_record, open_attempt
from t5lite.launching.engines.gke.jobset import pod_command
from t5lite.launching.engines.resources import resource_fields
from t5lite.launching.engines.table import ENGINES, engine_of
from t5lite.launching.launch import Launch

HOSTILE = (
    "a\ntouch PWNED",
    "a\r\n#SBATCH --wrap=x",
    "a; touch PWNED",
    "a && touch PWNED",
    "$(touch PWNED)",
    "`touch PWNED`",
    "a' ; touch PWNED ; '",
    'a" ; touch PWNED ; "',
    "a\\",
    "a\0b",
    "a\x1b[2J",
    "a\u2028touch PWNED",
    "%j {name} $HOME ~ * #",
    "-o x",
    "",
)
TARGETS = {"local": "", "slurm": ":gpu", "tpu": ":v5e-16", "gke": ":v5e-16"}
RESOURCES = {
    "local": {},
    "slurm": {"time_limit": "12:00:00", "options": ["--account=me"]},
    "tpu": {"zone": "us-east5-a", "options": ["--network=n"]},
    "gke": {"image": "us-docker.pkg.dev/p/jax:1", "claim": "runs"},
}
FIELDS = [
    (engine, field)
    for engine, found in ENGINES.items()
    for field in resource_fields(found.resources_type)
    if field.kind in (str, tuple)
]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder with programs that write down their arguments, one a line."""
    programs = tmp_path / "bin"
    programs.mkdir()
    home = tmp_path / "home"
    (home / ".t5lite").mkdir(parents=True)
    record = f'#!/bin/bash\nprintf "%s\\0" "$@" > {tmp_path}/arguments\n'
    for path in (programs / "python", programs / "t5lite", home / ".t5lite" / "worker.sh"):
        path.write_text(record)
        path.chmod(0o755)
    (programs / "tar").write_text("#!/bin/bash\n")
    (programs / "tar").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))

    def run(script):
        """Returns the arguments with which a script starts its program."""
        (tmp_path / "arguments").unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(home),
            "SLURM_ARRAY_TASK_ID": "0",
        }
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert not list(tmp_path.rglob("PWNED"))
        return (tmp_path / "arguments").read_bytes().decode().split("\0")[:-1]

    return run


def scripts_of(engine, launch):
    """Returns what a launch makes a shell run, and the words that its program must receive."""
    found = engine_of(launch)
    own = launch.arguments(0, launch.planned[0])
    text = found.render([0])
    if engine == "local":
        return [(text, own)]
    if engine == "slurm":
        lines = text.splitlines()
        assert [line for line in lines if not line.startswith("#")] == lines[-1:]
        options = [line for line in lines if line.startswith("#SBATCH ")]
        partition = launch.engine.partition(":")[2]
        given = launch.resources
        more = bool(partition) + 2 * bool(given.get("time_limit")) + len(given.get("options", ()))
        assert len(options) == 8 + more
        folder = launch.folder.rpartition("/")[0]
        words = ["launch", "trial", launch.name, f"--dir={folder}", "--trial=0"]
        return [(text, words)]
    if engine == "gke":
        return [(pod_command(launch, 0).replace("$$", "$"), ["run", *own])]
    commands = found._commands.whole_attempt(0)
    assert shlex.split(text) == [word for command in commands for word in command]
    (ssh,) = [word for words in commands for word in words if word.startswith("--command=")]
    return [(ssh.removeprefix("--command="), ["start", "1", *own])]


def check(machine, engine, launch):
    """Returns the error of a launch; one without an error does exactly what it should."""
    try:
        scripts = scripts_of(engine, launch)
    except UserError as error:
        return str(error)
    for script, words in scripts:
        assert machine(script)[-len(words) :] == words
    return ""


def make(name, tmp_path, **changes):
    fields = {
        "folder": str(tmp_path / "lr"),
        "command": "train",
        "flags": ["--gin_file=a.gin"],
        "engine": f"{name}{TARGETS[name]}",
        "working_dir": str(tmp_path),
        "resources": RESOURCES[name],
        "space": {"a.b": "['x', 'y']"},
    }
    return Launch(**{**fields, **changes})


@pytest.mark.parametrize(("engine", "field"), FIELDS, ids=lambda x: getattr(x, "name", x))
def test_hostile_resources_are_rejected_or_harmless(machine, tmp_path, engine, field):
    for text in HOSTILE:
        value = [text] if field.kind is tuple else text
        resources = {**RESOURCES[engine], field.name: value}
        launch = make(engine, tmp_path, resources=resources)
        error = check(machine, engine, launch)
        assert error.isprintable()
        assert error.startswith(f"--{field.name} must be ") or text.isprintable()


@pytest.mark.parametrize("engine", ENGINES)
def test_hostile_text_outside_resources_is_rejected_or_harmless(machine, tmp_path, engine):
    # No flag and no folder can hold a NUL.
    for text in (text for text in HOSTILE if "\0" not in text):
        for change in (
            {"flags": [f"--gin.a={text}"]},
            {"space": {"a.b": repr([text, "y"])}},
            {"working_dir": f"{tmp_path}/{text}"},
            {"folder": str(tmp_path / text / "lr")},
            {"folder": f"{tmp_path}/lr{text}"},
            {"engine": f"{engine}:{text}"},
        ):
            assert check(machine, engine, make(engine, tmp_path, **change)).isprintable()


def test_hostile_records_do_not_become_commands(tmp_path):
    """The number of an attempt becomes part of a command of ssh, the id of a job one of scancel."""
    for text in ("1; touch PWNED", "$(touch PWNED)", "--user=root", "-1", ""):
        append_record(tmp_path / "attempts.jsonl", attempt=text)
        with pytest.raises(UserError, match="the field 'attempt' must be a 64-bit integer of at l"):
            open_attempt(tmp_path)
        (tmp_path / "attempts.jsonl").unlink()
        folder = tmp_path / "lr"
        folder.mkdir(exist_ok=True)
        append_record(folder / "jobs.jsonl", job=text, trials=[0])
        with pytest.raises(UserError, match=r"jobs.jsonl:1: the field 'job' must be a job id, got"):
            engine_of(make("slurm", tmp_path)).cancel()
        (folder / "jobs.jsonl").unlink()


def test_common_launches_are_not_rejected(machine, tmp_path):
    for engine in ENGINES:
        assert not check(machine, engine, make(engine, tmp_path))
        spaced = make(engine, tmp_path, folder=f"{tmp_path}/my runs, 50%/lr")
        assert not check(machine, engine, spaced)
    for partition in ("gpu", "a100-8x", "gpu,cpu", "p_1.2"):
        assert not check(machine, "slurm", make("slurm", tmp_path, engine=f"slurm:{partition}"))
    for limit in ("30", "90:00", "12:00:00", "2-12", "2-12:00:00"):
        resources = {"time_limit": limit}
        assert not check(machine, "slurm", make("slurm", tmp_path, resources=resources))
