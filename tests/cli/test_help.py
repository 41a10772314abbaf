"""Help texts, read by the same table that defines the flags."""

import re

import pytest

from t5lite.cli.command_flag import COMMON_FLAGS
from t5lite.cli.flags import command_flags
from t5lite.cli.main import COMMANDS

TABLED = [name for name in COMMANDS if command_flags(name)]


def test_the_list_of_commands_fits_80_columns(command):
    code, out, _ = command("--help")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    assert all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns(name, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command(name, "--help")
    assert code == 0
    assert not [line for line in out.splitlines() if len(line) > 80]


@pytest.mark.parametrize("name", TABLED)
def test_help_lists_every_flag_once_in_its_group_the_common_ones_first(name, command):
    code, out, _ = command(name, "--help")
    assert code == 0
    groups = re.findall(r"^([a-z ]+):$", out, re.MULTILINE)
    assert groups[0] == COMMON_FLAGS
    assert len(groups) == len(set(groups))
    listed = re.findall(r"^  --(\S+)$", out, re.MULTILINE)
    flags = [flag.name for flag in command_flags(name)]
    assert sorted(listed) == sorted([*flags, *(["gin.NAME=VALUE"] if "gin_file" in flags else [])])


def test_help_states_the_choices_and_the_default_of_a_flag(command):
    assert (
        "Format of the output: t5lite or huggingface or peft; t5lite if not given."
        in command("convert", "--help")[1]
    )
    assert (
        "Number of choices that --suggest compiles; 4 if not given." in command("plan", "--help")[1]
    )


def test_help_of_launch_lists_the_flags_of_each_engine_under_it(command):
    code, out, _ = command("launch", "--help")
    assert code == 0
    assert out.index("common flags") < out.index("--time_limit") < out.index("--zone")
