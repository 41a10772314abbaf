"""Programs of schedulers and clouds that engines call: Slurm's, gcloud and kubectl."""

import subprocess
from collections.abc import Sequence
from typing import Any

from t5lite.core.errors import UserError, shown
from t5lite.core.json_values import decode_json
from t5lite.core.records import Kind

SLURM_REMEDY = "this machine has no Slurm; launch on a login node, or with --on=local"
# What to do about a missing program.
REMEDIES = {
    "gcloud": "install the Google Cloud CLI and log in with gcloud auth login",
    "kubectl": "install it and get the cluster's credentials with gcloud container clusters "
    "get-credentials",
}
CALL_SECONDS = 120


def call_program(
    command: Sequence[str], text: str | None = None, *, seconds: float = CALL_SECONDS
) -> str:
    """Runs a program to its end and returns its output.

    Args:
        text: standard input.
        seconds: timeout.

    Raises:
        UserError: if it is missing, fails or times out, on one line.
    """
    program = command[0]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds)
    except FileNotFoundError as error:
        raise UserError(f"{program} not found: {REMEDIES.get(program, SLURM_REMEDY)}") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{program} did not answer within {seconds:g} seconds") from error
    if done.returncode:
        raise UserError(f"{program}: {_reason(done.stderr or done.stdout, program)}")
    # NOTE: sbatch --test-only reports a valid job on stderr.
    return done.stdout or done.stderr


def decode_output(program: str, output: str, kind: Kind) -> Any:
    """Returns the JSON value that a program printed.

    Args:
        kind: what it must be.

    Raises:
        UserError: if it printed something else.
    """
    try:
        value = decode_json(output)
    except ValueError as error:
        raise UserError(f"{program} must print JSON, got {shown(output)}: {error}") from error
    if not kind.holds(value):
        raise UserError(f"{program} must print {kind.rule}, got {shown(output)}")
    return value


def _reason(output: str, program: str) -> str:
    """Returns the line of an output that gives the reason of a failure.

    >>> _reason("ERROR: (gcloud.x) You do not have an account.\\nPlease run:\\n  $ gcloud auth", "")
    '(gcloud.x) You do not have an account. Please run: $ gcloud auth'
    >>> _reason("sbatch: warning\\nsbatch: error: invalid partition", "sbatch")
    'error: invalid partition'
    """
    lines = [" ".join(line.split()) for line in output.strip().splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if line.startswith("ERROR:"):
            # The lines after it give the remedy.
            return " ".join(lines[index : index + 3]).removeprefix("ERROR: ")
    return lines[-1].removeprefix(f"{program}: ") if lines else "it failed without a message"
