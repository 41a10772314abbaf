"""The functions that gin calls: each checks what was bound to a class or function, and calls it."""

import collections.abc
import contextlib
import contextvars
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gin

from t5lite.core.errors import UserError, cut
from t5lite.inference.decoding import Decoding
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.parallel.mesh import Mesh

# Classes whose instances are defaults of parameters: `Mesh.fsdp` can be bound although no file
# binds `train.mesh = @Mesh()`.
_PARTS = {CrossEntropy: "CrossEntropy", Decoding: "Decoding", Mesh: "Mesh"}
_PLAIN_TYPES = (int, float, str, bool, types.NoneType, collections.abc.Sequence)
_PLAIN_NAMES = {types.NoneType: "None", collections.abc.Sequence: "list"}

# By name, what builders call instead of their targets.
_SUBSTITUTES: contextvars.ContextVar[Mapping[str, Callable[..., Any]]]
_SUBSTITUTES = contextvars.ContextVar("substitutes", default=types.MappingProxyType({}))


@contextlib.contextmanager
def substituted(substitutes: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Lets builders call substitutes of their targets, by name, while the context is open."""
    token = _SUBSTITUTES.set(substitutes)
    try:
        yield
    finally:
        _SUBSTITUTES.reset(token)


def make_builder(name: str, target: Callable[..., Any], *, is_own: bool = False) -> Any:
    """Returns a function that gin can call in place of `target`.

    It checks the types of what is bound and names every required parameter that is not.

    Args:
        name: of the target, as users bind it.
        is_own: whether the target is from a user's own code.

    Raises:
        UserError: if the target's annotations cannot be resolved. The returned function raises one
            for a value of the wrong type or a required parameter that is not bound.
    """
    signature = inspect.signature(target)
    parameters = [
        p for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    hints = _hints(name, target)
    parts = {p.name: _PARTS[type(p.default)] for p in parameters if type(p.default) in _PARTS}

    def build(**bound: Any) -> Any:
        for parameter in parameters:
            key = parameter.name
            if key in bound:
                bound[key] = getattr(bound[key], "own_target", bound[key])
                _check_type(f"{name}.{key}", bound[key], hints.get(key, Any))
            elif parameter.default is parameter.empty:
                raise UserError(
                    f"{name}.{key} is required and not bound; add --gin.{name}.{key}=VALUE or "
                    "bind it in the run file"
                )
            elif key in parts:
                bound[key] = gin.get_configurable(parts[key])()
        return _SUBSTITUTES.get().get(name, target)(**bound)

    # gin asks the signature what can be bound. Every parameter gets a default, so that the error
    # for a missing one is the one above and not gin's.
    build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            p.replace(kind=p.KEYWORD_ONLY, default=None if p.default is p.empty else p.default)
            for p in parameters
        ]
    )
    build.__name__ = name.rpartition(".")[2]
    build.parts = parts  # type: ignore[attr-defined]
    build.is_own = is_own  # type: ignore[attr-defined]
    if is_own:
        # What `@module:name` without parentheses stands for. gin's wrappers copy it.
        build.own_target = target  # type: ignore[attr-defined]
    return build


def _hints(name: str, target: Callable[..., Any]) -> dict[str, Any]:
    is_plain = inspect.isclass(target) and not dataclasses.is_dataclass(target)
    try:
        return typing.get_type_hints(vars(target).get("__init__", target) if is_plain else target)
    except (NameError, TypeError) as error:
        raise UserError(f"{name}: its annotations cannot be resolved: {error}") from error


def _check_type(owner: str, value: Any, hint: Any) -> None:
    """Checks a value against the annotation of its parameter."""
    if _has_type(value, hint):
        return
    kinds = typing.get_args(hint) if _is_union(hint) else (typing.get_origin(hint) or hint,)
    names = " or ".join(_PLAIN_NAMES.get(k, getattr(k, "__name__", str(k))) for k in kinds)
    remedy = (
        "" if all(kind in _PLAIN_TYPES for kind in kinds) else "; an object is bound as @NAME()"
    )
    got = repr(value) if isinstance(value, int | float | str) else type(value).__name__
    raise UserError(f"{owner} must be {names}, got {cut(got)}{remedy}")


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _has_type(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if _is_union(hint):
        return any(_has_type(value, kind) for kind in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind is typing.Literal:
        return value in typing.get_args(hint)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(
            value, bool
        )
    if kind is collections.abc.Sequence:
        # A string is a sequence of characters, which is never meant.
        return isinstance(value, tuple | list)
    # gin has lists where Python has tuples.
    try:
        return isinstance(value, tuple | list if kind is tuple else kind)
    except TypeError:
        # Annotations such as a type variable or a protocol of attributes, which no value has.
        return True
