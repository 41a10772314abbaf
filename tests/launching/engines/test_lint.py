"""gcloud's linter, whose absence is mentioned."""

import json

import pytest

from t5lite.core.errors import UserError
from t5lite.launching.engines.tpu import engine

COMMANDS = [["gcloud", "a", "--b"], ["gcloud", "c"]]
# What gcloud prints.
GOOD = {"command_string": "gcloud c", "success": True, "error_message": None, "error_type": None}
BAD = {**GOOD, "success": False, "error_message": "no flag --b\nmore", "error_type": "X"}


def lint(monkeypatch, output):
    def call(command):
        assert command[:3] == ["gcloud", "meta", "lint-gcloud-commands"]
        if isinstance(output, Exception):
            raise output
        return output

    monkeypatch.setattr(engine, "call_program", call)
    return engine._lint(COMMANDS)


def test_accepted_commands_give_no_remark(monkeypatch):
    unparsed = {**BAD, "error_type": "CommandValidationError"}
    assert lint(monkeypatch, json.dumps([GOOD, unparsed])) == ""


def test_a_rejected_command_is_an_error(monkeypatch):
    with pytest.raises(UserError, match="gcloud would reject gcloud c: no flag --b"):
        lint(monkeypatch, json.dumps([GOOD, BAD]))


@pytest.mark.parametrize(
    "output",
    [UserError("gcloud: Invalid choice: 'lint'"), "not JSON", "[1]", '[{"error_type": 5}]'],
)
def test_a_linter_that_fails_is_mentioned(output, monkeypatch):
    assert "gcloud's linter failed, so its commands are not checked" in lint(monkeypatch, output)
