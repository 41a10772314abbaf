"""From gin files and flags to objects; together with `gin_*.py` the only code that knows gin.

A command builds its roots; gin builds the trees of finished objects below them, and after that
nothing reads gin. All roots accept the same files and flags: a command builds its own roots, and a
binding that another root reads is valid and without effect. A binding that no root reads is an
error.

Names
-----
`t5lite.public_names` lists the names that gin files and flags can bind. A class or function from
your own code needs no entry there: wherever gin takes a name, `module:name` imports it. With

    # my_code.py, in the current directory or anywhere on PYTHONPATH
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class WeightedLoss:
        weight: float = 1.0
        ...

a run file, or a flag, binds

    train.loss = @my_code:WeightedLoss()
    my_code:WeightedLoss.weight = 0.5

This holds for everything that gin builds: objectives, losses, optimizers, schedules, adapters,
writers, sources, and parts of models. Its parameters are checked against their annotations; a
function that returns an optax transformation becomes an optimizer whose `learning_rate` may be a
schedule, as optax's own do. Without parentheses, `@my_code:warm_up` is the function itself, for
parameters that take one, such as a schedule; nothing can be bound to it then. Lists of names, such
as `Task.metrics` and `Task.preprocessors`, take the same `module:name` as strings.

Files beside a gin file
-----------------------
A string that begins with `$FOLDER/` begins with the folder of its gin file, wherever that has been
moved: `SentencePieceVocabulary.path = '$FOLDER/vocabulary.model'`.

The `config.gin` of a run records `module:name` with every parameter, so `eval`, `infer` and trials
of a launch import it again: start them where the module can be imported.
"""

import contextlib
import functools
import io
import os
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config as gin_internals

import t5lite
from t5lite.core.named import import_function
from t5lite.gin_builders import make_builder, substituted
from t5lite.gin_errors import build_errors, parse_errors
from t5lite.gin_text import (
    binding_statement,
    decode_own_names,
    encode_own_names,
    in_folder,
    own_names,
    own_selector,
    read_gin_file,
)
from t5lite.gin_usage import Bindings, check_all_read, current_bindings
from t5lite.public_names import ROOTS, TABLE, as_configurable

# Everything that is registered, by the name that users write: the table, and names of their own.
_TARGETS: dict[str, Callable[..., Any]] = {}


def load(
    gin_files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str],
    *roots: str,
    substitutes: Mapping[str, Callable[..., Any]] | None = None,
) -> tuple[Any, ...]:
    """Parses files, then bindings, and returns the objects of `roots`.

    Args:
        gin_files: later ones win.
        bindings: `NAME=VALUE`; a value that gin cannot parse is a string.
        search_paths: directories in which files and includes are looked for, after the current one
            and before those that come with t5lite.
        substitutes: by name, what to call instead of the public class or function, with the same
            parameters.

    Raises:
        UserError: for a missing file, an unknown name, a required parameter that is not bound, a
            value of the wrong type, or a binding that no root reads.
    """
    _register_table()
    gin.clear_config()
    states = [current_bindings()]
    gin_internals._LOCATION_PREFIXES[:] = ["", *search_paths, *_packaged_paths()]
    gin_internals._FILE_READERS[:] = [(functools.partial(_opened, states), os.path.isfile)]
    with parse_errors(_TARGETS):
        for path in gin_files:
            gin.parse_config_file(path)
        statements = "\n".join(map(binding_statement, bindings))
        gin.parse_config(_registered(statements))
        states.append(current_bindings())
        gin.finalize()
    with build_errors(_TARGETS), substituted(substitutes or {}):
        built = tuple(gin.get_configurable(root)() for root in roots)
    check_all_read(states, ROOTS)
    return built


def resolved_text(strings: Mapping[str, str] = types.MappingProxyType({})) -> str:
    """Returns everything that is in force as a gin file that builds the same objects on its own.

    Args:
        strings: by bound string, what is written instead of it.
    """
    # NOTE: gin prints its own records alone, and they have no public name.
    written = {
        key: {name: strings.get(v, v) if isinstance(v, str) else v for name, v in values.items()}
        for key, values in gin_internals._OPERATIVE_CONFIG.items()
    }
    return decode_own_names(gin_internals._config_str(written, max_line_length=100))


@contextlib.contextmanager
def _opened(states: list[Bindings], path: str) -> Iterator[io.StringIO]:
    """Opens a gin file for gin's parser, and records what is bound after it, includes too."""
    text = in_folder(read_gin_file(path), str(pathlib.Path(path).absolute().parent))
    file = _NamedText(_registered(text), newline=None)
    file.name = path
    yield file
    states.append(current_bindings())


class _NamedText(io.StringIO):
    """A text with the name of its file, which gin's errors show."""

    name: str


def _registered(text: str) -> str:
    """Registers every `module:name` of a gin text, and returns the text as gin parses it."""
    for module, name in own_names(text):
        shown = f"{module}:{name}"
        target = import_function("a gin file or flag", shown)
        if _TARGETS.get(shown) is not target:
            selector = own_selector(module, name)
            if shown in _TARGETS:
                gin_internals._REGISTRY.pop(f"t5lite.{selector}")
            configurable = as_configurable(shown, target)
            builder = make_builder(shown, configurable, is_own=True)
            gin.external_configurable(builder, name=selector, module="t5lite")
            _TARGETS[shown] = target
    return encode_own_names(text)


@functools.cache
def _register_table() -> None:
    for name, target in TABLE.items():
        module, _, short = name.rpartition(".")
        builder = make_builder(name, target)
        gin.external_configurable(builder, name=short, module=module or "t5lite")
        _TARGETS[name] = target


def _packaged_paths() -> list[str]:
    """The parents of gin/ in a checkout and in an installed wheel; paths are the same in both."""
    package = pathlib.Path(t5lite.__file__).parent
    return [str(package.parent), str(package)]
