"""The arguments of a command: its flags, its bindings, and other words."""

from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from t5lite.cli.flag_help import unknown_flag
from t5lite.cli.flags import flags_of
from t5lite.core.errors import UserError

_BINDING = "--gin."


class Arguments(NamedTuple):
    """The parsed arguments of a command; `bindings` are NAME=VALUE."""

    flags: flags.FlagValues
    words: list[str]
    bindings: list[str]


def parse_arguments(command: str, arguments: Sequence[str]) -> Arguments:
    """Parses the arguments of a command.

    Raises:
        UserError: for a flag that the command does not have, or a value that a flag does not take.
    """
    values = flags_of(command, arguments)
    try:
        _, *words = values(["t5lite", *(a for a in arguments if not a.startswith(_BINDING))])
    except flags.UnrecognizedFlagError as error:
        raise UserError(unknown_flag(command, error.flagname, list(values))) from error
    except flags.Error as error:
        raise UserError(str(error).replace("\n", " ")) from error
    bindings = [a.removeprefix(_BINDING) for a in arguments if a.startswith(_BINDING)]
    return Arguments(values, words, bindings)
