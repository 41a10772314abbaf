"""The one module that knows gin: from files and flags to objects.

A command builds its roots; gin makes the trees of finished objects below them, and after that
nothing reads gin.
"""

import ast
import collections.abc
import functools
import inspect
import itertools
import logging
import pathlib
import re
import tokenize
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
from gin import config as gin_internals

import t5lite
from t5lite.core.errors import UserError, suggestion
from t5lite.inference.decoding import Decoding
from t5lite.models.losses import CrossEntropy
from t5lite.parallel.mesh import Mesh
from t5lite.public_names import ROOTS, TABLE


def load(
    gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str], *roots: str
) -> tuple[Any, ...]:
    """Parses files, then bindings, and returns the objects of `roots`.

    Args:
        gin_files: later ones win.
        bindings: `NAME=VALUE`; a value that is no gin literal is a string.
        search_paths: folders where files and includes are looked for, after the current one and
            before those that come with t5lite.

    Raises:
        UserError: for a file that is not there, a name that is unknown, a parameter that is
            needed and not bound, a value of another type, or a binding that binds nothing.
    """
    _register_once()
    gin.clear_config()
    for path in (*search_paths, *_packaged_paths()):
        gin.add_config_file_search_path(path)
    states = [_bound()]
    with _user_errors():
        for path in gin_files:
            gin.parse_config_file(path)
            states.append(_bound())
        gin.parse_config([_quoted(binding) for binding in bindings])
        states.append(_bound())
        gin.finalize()
        built = tuple(gin.get_configurable(root)() for root in roots)
    _check_all_used(states, roots)
    return built


def resolved_text() -> str:
    """Returns all that was in force as a gin file, which on its own builds the same tree."""
    return gin.operative_config_str(max_line_length=100)


@functools.cache
def _register_once() -> None:
    for name, target in TABLE.items():
        module, _, short = name.rpartition(".")
        gin.external_configurable(_builder(name, target), name=short, module=module or "t5lite")


def _builder(name: str, target: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function in place of `target`, which checks what was bound and calls it."""
    signature = inspect.signature(target)
    parameters = [
        p for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    hints = typing.get_type_hints(target)

    def build(**bound: Any) -> Any:
        for parameter in parameters:
            if parameter.name in bound:
                hint = hints.get(parameter.name, Any)
                _check_type(f"{name}.{parameter.name}", bound[parameter.name], hint)
            elif parameter.default is parameter.empty:
                raise UserError(
                    f"{name}.{parameter.name} is needed and not bound; "
                    f"add --gin.{name}.{parameter.name}=VALUE or bind it in the run file"
                )
            elif (part := _PARTS.get(type(parameter.default))) is not None:
                # So `Mesh.fsdp` can be bound though no file says `train.mesh = @Mesh()`.
                bound[parameter.name] = gin.get_configurable(part)()
        return target(**bound)

    # Gin asks the signature for what may be bound. Every argument gets a default, so that what
    # is missing is reported above and not by gin.
    build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            p.replace(kind=p.KEYWORD_ONLY, default=None if p.default is p.empty else p.default)
            for p in parameters
        ]
    )
    build.__name__ = name.rpartition(".")[2]
    return build


# Classes whose instances are defaults of others.
_PARTS = {CrossEntropy: "CrossEntropy", Decoding: "Decoding", Mesh: "Mesh"}


def _check_type(owner: str, value: Any, hint: Any) -> None:
    """Checks a value against the type that the signature gives its parameter."""
    if not _is_of(value, hint):
        kinds = typing.get_args(hint) if _is_union(hint) else (typing.get_origin(hint) or hint,)
        plain_names = {types.NoneType: "None", collections.abc.Sequence: "list"}
        names = " or ".join(plain_names.get(k, getattr(k, "__name__", str(k))) for k in kinds)
        plain = all(
            kind in (int, float, str, bool, types.NoneType, collections.abc.Sequence)
            for kind in kinds
        )
        remedy = "" if plain else "; an object is bound as @NAME()"
        got = repr(value) if isinstance(value, int | float | str) else type(value).__name__
        raise UserError(f"{owner} must be {names}, got {got}{remedy}")


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _is_of(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if _is_union(hint):
        return any(_is_of(value, kind) for kind in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind in (int, float):
        accepted = int if kind is int else int | float
        return isinstance(value, accepted) and not isinstance(value, bool)
    if kind is collections.abc.Sequence:
        # A text is a sequence of letters, which nobody means.
        return isinstance(value, tuple | list)
    # Gin has lists where Python has tuples.
    return isinstance(value, tuple | list if kind is tuple else kind)


def _packaged_paths() -> list[str]:
    """The folders above gin/ in a checkout and in an installed wheel: paths read alike in both."""
    package = pathlib.Path(t5lite.__file__).parent
    return [str(package.parent), str(package)]


def _quoted(binding: str) -> str:
    """Quotes a value that is no gin literal: `MODEL_DIR=/tmp/x` binds the string "/tmp/x"."""
    name, equals, value = binding.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--gin.NAME=VALUE needs a name and a value, got --gin.{binding}")
    name, value = name.strip(), value.strip()
    # A template such as {text} is no literal, a dict of references is one of gin's.
    is_dict = value.startswith("{") and ("@" in value or "%" in value)
    if not is_dict and not value.startswith(("@", "%", "[", "(")):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = repr(value)
    return f"{name} = {value}"


def _bound() -> dict[str, str]:
    """All that is bound: the full name to the value as text."""
    # NOTE: gin has no public way to list what is bound.
    return {
        _binding_name(scope, selector, parameter): repr(value)
        for (scope, selector), parameters in gin_internals._CONFIG.items()
        for parameter, value in parameters.items()
    }


def _binding_name(scope: str, selector: str, parameter: str) -> str:
    if selector == "gin.macro":
        return scope
    prefix = f"{scope}/" if scope else ""
    return f"{prefix}{selector.removeprefix('t5lite.')}.{parameter}"


def _provider(scope: str, selector: str, parameter: str, bound: Mapping[str, str]) -> str:
    """Returns the binding that a call in `scope` takes: the innermost scope's that has one."""
    scopes = scope.split("/") if scope and selector != "gin.macro" else []
    names = [
        _binding_name("/".join(scopes[:count]), selector, parameter)
        for count in range(len(scopes), 0, -1)
    ]
    outermost = _binding_name(scope if not scopes else "", selector, parameter)
    return next((name for name in names if name in bound), outermost)


def _check_all_used(states: Sequence[Mapping[str, str]], roots: Sequence[str]) -> None:
    """Raises a UserError for the first binding that nothing below `roots` has read.

    A parameter in a file may go unread where a later file or flag put another object in the place
    of one that a file named, which may have read it, and a macro where one put a value in the place
    of its only use. A flag may not.

    Args:
        states: what was bound after each file, and last after the flags.
    """
    *_, from_files, bound = states
    used = {
        _provider(scope, selector, parameter, bound)
        for (scope, selector), parameters in gin_internals._OPERATIVE_CONFIG.items()
        for parameter in parameters
    }
    displaced = any(
        value.startswith("@") and after[name] != value
        for before, after in itertools.pairwise(states)
        for name, value in before.items()
    )
    # The same flags serve every command, so what another root takes is no mistake.
    others = tuple(f"{name}." for name in ROOTS if name not in roots)
    for name, value in bound.items():
        is_macro = "." not in name
        referred = not is_macro or any(f"%{name}" in other for other in bound.values())
        was_referred = is_macro and any(
            f"%{name}" in other for state in states[:-1] for other in state.values()
        )
        excused = from_files.get(name) == value and (
            (displaced and referred) or (was_referred and not referred)
        )
        if name not in used and not excused and not name.startswith(others):
            kind = "macro" if is_macro else "parameter"
            near = suggestion(name, used)
            hint = f"; {near}" if near.startswith("did") else ""
            raise UserError(f"{name} binds nothing: {roots[0]} uses no such {kind}{hint}")


class _user_errors:  # used as a context manager, reads as a function
    """Turns gin's errors about names into UserErrors on one line, with a suggestion."""

    def __enter__(self) -> None:
        # Gin logs every folder in which it did not find a file.
        logging.disable(logging.ERROR)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        logging.disable(logging.NOTSET)
        if error is None or isinstance(error, UserError):
            return
        text = str(error)
        if isinstance(error, OSError) and "Unable to open file" in text:
            name = re.search(r"open file: (.*?)\. Searched", text)
            raise UserError(
                f"gin file {name.group(1) if name else text!r} is not there; looked in the "
                "current folder, --gin_search_paths and the files that come with t5lite"
            ) from error
        if match := re.match(r"No configurable matching (?:reference )?'@?(.*?)(?:\(\))?'", text):
            raise UserError(
                f"{match.group(1)!r} is not a name that gin can bind; "
                f"{suggestion(match.group(1), TABLE)}{_where(text)}"
            ) from error
        if match := re.match(r"Configurable '(.*?)' doesn't have a parameter named '(.*?)'", text):
            owner, parameter = match.groups()
            known = inspect.signature(TABLE[owner]).parameters
            raise UserError(
                f"{owner} has no parameter {parameter!r}; "
                f"{suggestion(parameter, known)}{_where(text)}"
            ) from error
        if match := re.match(r"No bindings specified for '(.*?)/gin.macro'", text):
            macro = match.group(1)
            raise UserError(
                f"macro {macro} is used and not defined; add {macro} = VALUE"
            ) from error
        if isinstance(error, SyntaxError | tokenize.TokenError | UnicodeDecodeError):
            file, line = getattr(error, "filename", None), getattr(error, "lineno", None)
            where = f" ({file}:{line})" if file and line else ""
            raise UserError(f"gin cannot read what was bound: {error.args[0]}{where}") from error
        if isinstance(error, ImportError):
            raise UserError(f"a gin file imports what is not there: {text}") from error
        if isinstance(error, RecursionError):
            raise UserError("a gin file includes itself, or a macro stands for itself") from error


def _where(text: str) -> str:
    """Gin's own words on the place, where it names a file."""
    match = re.search(r'In file "(.*?)", line (\d+)', text)
    return f" ({match.group(1)}:{match.group(2)})" if match else ""
