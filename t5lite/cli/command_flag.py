"""One flag of a command, for absl and for `--help`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

# The group of the flags that `--help` lists first.
COMMON_FLAGS = "common flags"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandFlag:
    """One flag.

    Args:
        commands: that have it.
        group: title in `--help`.
        kind: str, int or bool, `list` for values with commas, "multi" for a flag that may be
            repeated, or the allowed values.
        minimum: of an integer.
        actions: those of the command that read it; empty if all do.
    """

    name: str
    help: str
    commands: Sequence[str]
    actions: Sequence[str] = ()
    group: str = "flags"
    kind: Any = str
    default: Any = None
    minimum: int | None = None

    @property
    def full_help(self) -> str:
        """The help with the allowed values and the default."""
        text = self.help.removesuffix(".")
        if isinstance(self.kind, tuple):
            text += f": {' or '.join(self.kind)}"
        if self.default:
            text += f"; {self.default} if not given"
        return f"{text}."

    def define(self, values: flags.FlagValues) -> None:
        """Adds the flag to those of a command."""
        if self.kind is str:
            flags.DEFINE_string(self.name, self.default, self.help, flag_values=values)
        elif self.kind is int:
            flags.DEFINE_integer(
                self.name, self.default, self.help, lower_bound=self.minimum, flag_values=values
            )
        elif self.kind is bool:
            short = "h" if self.name == "help" else None
            flags.DEFINE_boolean(
                self.name, self.default, self.help, short_name=short, flag_values=values
            )
        elif self.kind is list:
            flags.DEFINE_list(self.name, self.default, self.help, flag_values=values)
        elif self.kind == "multi":
            flags.DEFINE_multi_string(self.name, self.default, self.help, flag_values=values)
        else:
            flags.DEFINE_enum(
                self.name, self.default, list(self.kind), self.help, flag_values=values
            )
