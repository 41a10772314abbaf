"""The text that gin parses, from files and from `--gin.NAME=VALUE`. No object is built here.

A name from a user's own code, `module:name`, is no selector of gin's. It is encoded as one here and
decoded in everything that is printed, so that users see `module:name` only.
"""

import codecs
import pathlib
import re
import tokenize
from collections.abc import Iterator
from typing import Any

from gin import config_parser

from t5lite.core.errors import UserError, cut, shown

# Letters that resemble "." and ":" and that an identifier may contain.
_DOT = "\ua4f8"
_COLON = "\ua4fd"
_IDENTIFIER = r"[A-Za-z_]\w*"
_MODULE = rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*"
# Strings and comments are matched first, to be skipped.
_OWN_NAMES = re.compile(
    rf"""
    '''.*?''' | \"\"\".*?\"\"\" | '(?:\\.|[^'\\\n])*' | "(?:\\.|[^"\\\n])*" | \#[^\n]*
    | (?P<before> @(?:[\w.]+/)*
        | ^[ \t]*(?:\w+/)* (?={_MODULE}:{_IDENTIFIER}(?:\.\w+[ \t]*=|:[ \t]*(?:\#[^\n]*)?$)) )
      (?P<module>{_MODULE}):(?P<name>{_IDENTIFIER})
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
# The boundary keeps the time linear in the length of a name.
_ENCODED = re.compile(rf"\b{_IDENTIFIER}{_COLON}{_IDENTIFIER}")
_BINDING_NAME = re.compile(rf"(?:\w+/)*{_IDENTIFIER}(?:\.{_IDENTIFIER})*(?::{_IDENTIFIER}\.\w+)?")
# At the beginning of a string, the folder of the gin file that holds it.
OWN_FOLDER = "$FOLDER"
_IN_FOLDER = re.compile(rf"""(['"]){re.escape(OWN_FOLDER)}/""")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_gin_file(path: str) -> str:
    """Returns the text of a gin file; a UTF-8 byte-order mark is dropped.

    Raises:
        UserError: naming file, line and byte, if it is not UTF-8.
    """
    data = pathlib.Path(path).read_bytes()
    if data.startswith(_UTF_16):
        raise UserError(f"{path}:1 must be UTF-8, got UTF-16 (bytes 1 and 2); save it as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
        first_wrong = data.find(b"\0")
    except UnicodeDecodeError as error:
        first_wrong = error.start
    if first_wrong >= 0:
        line = data.count(b"\n", 0, first_wrong) + 1
        column = first_wrong - data.rfind(b"\n", 0, first_wrong)
        raise UserError(
            f"{path}:{line} must be UTF-8 text, got 0x{data[first_wrong]:02x} at byte {column} of "
            "the line; save it as UTF-8"
        )
    return text


def in_folder(text: str, folder: str) -> str:
    """Returns a gin text whose strings begin with `folder` where they began with `$FOLDER`.

    >>> in_folder("DATA = '$FOLDER/a.txt'", "/runs/1")
    "DATA = '/runs/1/a.txt'"
    """

    def replaced(match: re.Match[str]) -> str:
        quote = match[1]
        shown = folder.replace("\\", "\\\\").replace(quote, f"\\{quote}").replace("\n", "\\n")
        return f"{quote}{shown}/"

    return _IN_FOLDER.sub(replaced, text)


def binding_statement(binding: str) -> str:
    """Returns the gin statement of `NAME=VALUE`; a value that is no gin value becomes a string.

    >>> binding_statement("MODEL_DIR=/tmp/x")
    "MODEL_DIR = '/tmp/x'"
    >>> binding_statement("Task.inputs=[S2S] {inputs}")
    "Task.inputs = '[S2S] {inputs}'"
    >>> binding_statement("train.optimizer=@AdamW()")
    'train.optimizer = @AdamW()'
    >>> binding_statement("Task.inputs= {inputs}")
    "Task.inputs = ' {inputs}'"

    Raises:
        UserError: if there is no name, or it is none that gin could bind.
    """
    # White space around a string is text: a template may begin with it.
    name, equals, value = binding.partition("=")
    name = name.strip()
    if not equals or not name:
        raise UserError(f"--gin.NAME=VALUE needs a name and a value, got --gin.{shown(binding)}")
    if not _BINDING_NAME.fullmatch(name):
        raise UserError(
            f"--gin.NAME=VALUE needs a macro such as STEPS or a parameter such as AdamW.b1 as "
            f"its name, got {cut(repr(name))}"
        )
    return f"{name} = {value.strip() if is_gin_value(value.strip()) else repr(value)}"


def is_gin_value(text: str) -> bool:
    """Whether gin can parse `text` as one value: a literal, a reference, a macro or a container."""
    parser_errors = (
        AssertionError,
        LookupError,
        SyntaxError,
        ValueError,
        TypeError,
        tokenize.TokenError,
        RecursionError,
    )
    try:
        parser = config_parser.ConfigParser(f"x = {encode_own_names(text)}\n", _AnyName())
        statements = list(parser)
    except parser_errors:
        return False
    return len(statements) == 1 and isinstance(statements[0], config_parser.BindingStatement)


class _AnyName(config_parser.ParserDelegate):
    """Accepts references and macros of any name."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        return None

    def macro(self, macro_name: str) -> Any:
        return None


def own_names(text: str) -> Iterator[tuple[str, str]]:
    """Yields the module and the name of every `module:name` in a gin text.

    >>> list(own_names("train.loss = @my.code:Loss()\\nmy.code:Loss.weight = 1  # @no:name"))
    [('my.code', 'Loss'), ('my.code', 'Loss')]
    """
    for match in _OWN_NAMES.finditer(text):
        if match["module"] is not None:
            yield match["module"], match["name"]


def own_selector(module: str, name: str) -> str:
    """Returns the gin selector that stands for `module:name`."""
    return f"{module.replace('.', _DOT)}{_COLON}{name}"


def encode_own_names(text: str) -> str:
    """Returns a gin text with every `module:name` replaced by its selector."""

    def encoded(match: re.Match[str]) -> str:
        if match["module"] is None:
            return match.group()
        return match["before"] + own_selector(match["module"], match["name"])

    return _OWN_NAMES.sub(encoded, text)


def decode_own_names(text: str) -> str:
    """Returns a text with every selector of `encode_own_names` replaced by its `module:name`.

    >>> decode_own_names(encode_own_names("a = @scope/my.code:Loss()"))
    'a = @scope/my.code:Loss()'
    """
    return _ENCODED.sub(lambda m: m.group().replace(_DOT, ".").replace(_COLON, ":"), text)
