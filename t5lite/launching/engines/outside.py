"""Programs of others that an engine talks to."""

import subprocess
from collections.abc import Sequence

from t5lite.core.errors import UserError

# What to do where a program is not there.
MISSING = {
    "sbatch": "this machine knows no Slurm; launch on a login node, or with --on=local",
    "gcloud": "install Google Cloud's CLI and log in with gcloud auth login",
    "kubectl": "install it and get the cluster's credentials with gcloud container clusters "
    "get-credentials",
}
SECONDS = 120


def call(
    command: Sequence[str],
    text: str | None = None,
    *,
    seconds: float = SECONDS,
) -> str:
    """Runs a program to its end and returns what it prints.

    Args:
        text: what it reads.
        seconds: how long it may take.

    Raises:
        UserError: where it is not there, fails or does not answer, in a line of its own.
    """
    program = command[0]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds)
    except FileNotFoundError as error:
        hint = MISSING.get(program, MISSING["sbatch"])
        raise UserError(f"{program} is not there: {hint}") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{program} did not answer within {seconds:g} seconds") from error
    if done.returncode:
        raise UserError(f"{program}: {_reason(done.stderr or done.stdout, program)}")
    # Where it would start a job sbatch --test-only tells of it as of an error.
    return done.stdout or done.stderr


def _reason(said: str, program: str) -> str:
    """The line that says why.

    >>> _reason("ERROR: (gcloud.x) You do not have an account.\\nPlease run:\\n  $ gcloud auth", "")
    '(gcloud.x) You do not have an account. Please run: $ gcloud auth'
    >>> _reason("sbatch: warning\\nsbatch: error: invalid partition", "sbatch")
    'error: invalid partition'
    """
    lines = [" ".join(line.split()) for line in said.strip().splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if line.startswith("ERROR:"):
            # What follows says what to do.
            return " ".join(lines[index : index + 3]).removeprefix("ERROR: ")
    return lines[-1].removeprefix(f"{program}: ") if lines else "it failed and said nothing"
