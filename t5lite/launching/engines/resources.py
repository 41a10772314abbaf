"""What a launch requests from its engine: typed fields, from which the flags of `launch` derive."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

from t5lite.core.errors import UserError, suggestion

_Resources = TypeVar("_Resources", bound="Resources")
KINDS_OF_RESOURCES = (int, str, bool, tuple)


def resource(
    help: str,
    *,
    default: Any = None,
    minimum: int = 1,
    pattern: str | None = None,
    rule: str | None = None,
) -> Any:
    """Declares a field of a resource class.

    Args:
        help: help text of its flag.
        default: value without the flag: None, False, or () for a flag that may be repeated.
        minimum: least value of an integer.
        pattern: regular expression that a string, or each of several, must match as a whole.
        rule: completes "--FLAG must be ..." for strings that do not match the pattern.
    """
    metadata = {"help": help, "minimum": minimum, "pattern": pattern, "rule": rule}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(resource,))
def resources(cls: type[_Resources]) -> type[_Resources]:
    """Makes `cls` a frozen keyword-only dataclass whose fields are flags of `launch`."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What a launch requests from its engine; a subclass adds fields by `resource`.

    A field is annotated `int | None`, `str | None`, `bool` or `tuple[str, ...]`, and is set by the
    flag of its name. Every string ends up in a script or a command, so control characters, line
    breaks included, are rejected.

    Raises:
        UserError: for a value that breaks the rule of its field, naming the flag.
    """

    def __post_init__(self) -> None:
        for each in resource_fields(type(self)):
            value = getattr(self, each.name)
            if each.kind is tuple:
                if not isinstance(value, tuple):
                    raise UserError(f"--{each.name} must be a list, got {value!r}")
                for one in value:
                    each.check_text(one)
            elif each.kind is str and value is not None:
                each.check_text(value)
            elif each.kind is int and value is not None:
                each.check_integer(value)
            elif each.kind is bool and not isinstance(value, bool):
                raise UserError(f"--{each.name} must be True or False, got {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourceField:
    """A field of a resource class as its flag needs it.

    Args:
        name: the name of the field and of its flag.
        kind: int, str, bool, or tuple for strings that may be repeated.
        help, minimum, pattern, rule: as declared by `resource`.
    """

    name: str
    kind: type
    help: str
    minimum: int
    pattern: str | None
    rule: str | None

    def check_text(self, value: Any) -> None:
        """Raises a UserError if a string breaks the rule of the field."""
        rule = self.rule or "one line of printable characters"
        matches = (
            isinstance(value, str)
            and value.isprintable()
            and re.fullmatch(self.pattern or ".+", value) is not None
        )
        if not matches:
            raise UserError(f"--{self.name} must be {rule}, got {value!r}")

    def check_integer(self, value: Any) -> None:
        """Raises a UserError if a value is no integer, or one below the minimum."""
        if type(value) is not int or value < self.minimum:
            raise UserError(
                f"--{self.name} must be an integer of at least {self.minimum}, got {value!r}"
            )


def resource_fields(cls: type[Resources]) -> list[ResourceField]:
    """Returns the fields of a resource class.

    Raises:
        TypeError: if a field has an annotation that no flag can have.
    """
    hints = typing.get_type_hints(cls)
    return [
        ResourceField(name=each.name, kind=_kind(cls, each.name, hints[each.name]), **each.metadata)
        for each in dataclasses.fields(cls)
    ]


def _kind(cls: type, name: str, hint: Any) -> type:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [typing.get_origin(one) or one for one in options if one is not types.NoneType]
    if len(kinds) != 1 or kinds[0] not in KINDS_OF_RESOURCES:
        raise TypeError(
            f"{cls.__name__}.{name} must be annotated int | None, str | None, bool or "
            f"tuple[str, ...], got {hint}"
        )
    kind: type = kinds[0]
    return kind


def make_resources(
    cls: type[_Resources], on: str, given: Mapping[str, Any], owners: Mapping[str, Sequence[str]]
) -> _Resources:
    """Returns the resources of flags or of a recorded launch.

    Args:
        on: the value of `--on`, for errors.
        owners: for each flag the engines that take it, for errors.

    Raises:
        UserError: for a flag that the engine does not take, by name.
    """
    known = {each.name for each in dataclasses.fields(cls)}
    for name in given:
        if name not in known:
            if name in owners:
                raise UserError(f"--{name} is for --on={' or '.join(owners[name])}, got {on}")
            raise UserError(f"--on={on} takes no --{name}; {suggestion(name, known)}")
    # JSON gives lists back.
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
