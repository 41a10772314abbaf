"""The text of `--help`, and hints for flags that do not exist."""

import shutil
import textwrap
from collections.abc import Sequence

from t5lite.cli.flags import BINDING_FLAG, command_flags
from t5lite.core.errors import suggestion

COMMAND_WIDTH = 9
_BINDING_HELP = "Bind a macro or a parameter; may be repeated, later values win."
_INDENT = 6
# What users of other tools write, and the flag that does it here.
_OTHER_TOOLS = {
    "gin_bindings": "bind each parameter by --gin.NAME=VALUE",
    "gin_param": "bind each parameter by --gin.NAME=VALUE",
    "gin": "bind each parameter by --gin.NAME=VALUE",
    "config": "run files are given as --gin_file=FILE",
    "config_file": "run files are given as --gin_file=FILE",
    "lr": "bind the optimizer's, such as --gin.AdamW.learning_rate=1e-3",
    "learning_rate": "bind the optimizer's, such as --gin.AdamW.learning_rate=1e-3",
    "output_dir": "use --gin.MODEL_DIR=VALUE",
    "max_steps": "use --gin.STEPS=VALUE",
    "train_steps": "use --gin.STEPS=VALUE",
    "batch": "use --gin.BATCH_SIZE=VALUE",
}
_MACROS = ("MODEL_DIR", "STEPS", "BATCH_SIZE", "SEED")


def flag_lines(command: str) -> list[str]:
    """Returns the flags of a command other than `launch` in groups, the common ones first."""
    groups: dict[str, dict[str, str]] = {}
    for flag in command_flags(command):
        group = groups.setdefault(flag.group, {})
        group[flag.name] = flag.full_help
        if flag.name == "gin_file":
            group[BINDING_FLAG] = _BINDING_HELP
    lines = []
    for title, texts in groups.items():
        lines += [f"{title}:", *_described(texts), ""]
    return lines[:-1]


def _described(texts: dict[str, str]) -> list[str]:
    """Returns a line for each flag and its help below, wrapped to the terminal."""
    width = min(shutil.get_terminal_size().columns, 100)
    lines = []
    for name, text in texts.items():
        indent = " " * _INDENT
        lines.append(f"  --{name}")
        lines += textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
    return lines


def unknown_flag(command: str, name: str, known: Sequence[str]) -> str:
    """Returns the error for a flag that a command does not have, with a hint.

    >>> unknown_flag("train", "steps", ["gin_file"])
    'train has no flag --steps; use --gin.STEPS=VALUE'
    >>> unknown_flag("train", "AdamW.b1", ["gin_file"])
    'train has no flag --AdamW.b1; parameters are bound by --gin.AdamW.b1=VALUE'
    """
    plain = name.partition("=")[0]
    if plain.upper() in _MACROS:
        hint = f"use --gin.{plain.upper()}=VALUE"
    elif plain in _OTHER_TOOLS:
        hint = _OTHER_TOOLS[plain]
    elif plain.startswith("gin."):
        hint = f"write two dashes: --{plain}=VALUE"
    elif "." in plain or "/" in plain:
        hint = f"parameters are bound by --gin.{plain}=VALUE"
    else:
        hint = suggestion(plain, known)
    return f"{command} has no flag --{plain}; {hint}"
