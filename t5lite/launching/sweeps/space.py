"""The search space of a sweep: for each gin binding a list of values or a range."""

import ast
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, check_choice, shown

Scalar = int | float | str | bool | None
RANGE_KINDS = ("log", "uniform", "range")
# Upper bound on the values of one list, on the settings of one grid, and on trials.
MAX_VALUES = 100_000
# Bounds of a range: differences and ratios of them are finite, and integers are exact as floats.
MAX_BOUND = 1e100
MAX_INTEGER_BOUND = 2**53


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; integers if both bounds are integers.

    Args:
        log: whether equal ratios are equally likely, instead of equal differences.
        points: number of grid points; None if the range is only sampled.
    """

    low: int | float
    high: int | float
    log: bool = False
    points: int | None = None

    @property
    def is_integer(self) -> bool:
        """Whether the range holds integers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def num_values(self) -> int | None:
        """Number of different values; None if the range is continuous."""
        return int(self.high) - int(self.low) + 1 if self.is_integer else None

    def ends(self) -> tuple[Scalar, ...]:
        """Returns the bounds: a run that is valid at both is valid in between."""
        return self.low, self.high

    def contains(self, value: Any) -> bool:
        """Whether a value is in the range, up to the rounding of `at`."""
        if type(value) not in (int, float):
            return False
        slack = 1e-11 * max(abs(self.low), abs(self.high))
        return self.low - slack <= value <= self.high + slack

    def at(self, fraction: float) -> Scalar:
        """Returns the value at a fraction in [0, 1) of the range."""
        # Every integer is equally likely, the upper bound included.
        high = self.high + 1 if self.is_integer else self.high
        if self.log:
            value = self.low * (high / self.low) ** fraction
        else:
            value = self.low + (high - self.low) * fraction
        return min(int(value), int(self.high)) if self.is_integer else float(f"{value:.12g}")

    def grid(self) -> list[Scalar]:
        """Returns `points` values at equal distances."""
        count = self.points or 0
        fractions = [i / (count - 1) for i in range(count)]
        if self.log:
            values: list[Any] = [self.low * (self.high / self.low) ** part for part in fractions]
        else:
            values = [self.low + (self.high - self.low) * part for part in fractions]
        values[0] = self.low
        values[-1] = self.high
        # Twelve digits: 0.001 and not 0.0009999999999999998.
        rounded = [round(v) if self.is_integer else float(f"{v:.12g}") for v in values]
        return list(dict.fromkeys(rounded))


@dataclasses.dataclass(frozen=True)
class ValueList:
    """One of several values."""

    values: tuple[Scalar, ...]

    @property
    def num_values(self) -> int:
        """Number of different values."""
        return len(set(self.values))

    def ends(self) -> tuple[Scalar, ...]:
        """Returns all values."""
        return self.values

    def contains(self, value: Any) -> bool:
        """Whether a value is one of the list."""
        return value in self.values

    def at(self, fraction: float) -> Scalar:
        """Returns the value at a fraction in [0, 1) of the list."""
        return self.values[int(fraction * len(self.values))]

    def grid(self) -> list[Scalar]:
        """Returns all values."""
        return list(self.values)


Space = Mapping[str, Range | ValueList]


def parse_space(texts: Mapping[str, str]) -> dict[str, Range | ValueList]:
    """Parses values such as `[0.0, 0.1]`, `range(3)`, `uniform(0, 0.3)` or `log(1e-4, 1e-2)`.

    A third number of `uniform` and `log` is the number of grid points: `log(1e-4, 1e-2, 5)`.

    Raises:
        UserError: for anything else, an empty range, more than `MAX_VALUES` values, or a value that
            is not a number, string, True, False or None.
    """
    return {name: _parse(shown(name), text) for name, text in texts.items()}


def check_no_repeats(space: Space) -> None:
    """Raises a UserError for a list that holds a value several times."""
    for name, values in space.items():
        if isinstance(values, ValueList) and len(set(values.values)) < len(values.values):
            raise UserError(
                f"values of {name} must be different from each other, got {list(values.values)}; "
                "use --allow_repeats to run repeated ones"
            )


def _parse(name: str, text: str) -> Range | ValueList:
    rule = UserError(
        f"values of {name} must be a list such as [0.0, 0.1], range(3), uniform(0.0, 0.3) or "
        f"log(1e-4, 1e-2), got {shown(text)}"
    )
    try:
        body = ast.parse(text.strip(), mode="eval").body
        if isinstance(body, ast.Call) and isinstance(body.func, ast.Name) and not body.keywords:
            kind = body.func.id
            numbers = [ast.literal_eval(arg) for arg in body.args]
        else:
            kind = "list"
            numbers = ast.literal_eval(body)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise rule from error
    text = shown(text)
    if kind != "list":
        check_choice(f"the range of {name}", kind, RANGE_KINDS)
    if not isinstance(numbers, list | tuple):
        raise rule
    if kind == "range":
        if not (all(type(n) is int for n in numbers) and 1 <= len(numbers) <= 3):
            raise rule
        if numbers[2:] == [0]:
            raise rule
        steps = range(*numbers)
        # NOTE: `len` fails for more than 2**63 values.
        if steps[MAX_VALUES:]:
            raise UserError(f"{name} must have at most {MAX_VALUES:,} values, got {text}")
        numbers = list(steps)
    if kind in ("list", "range"):
        return _parse_list(name, numbers, text)
    if not (2 <= len(numbers) <= 3 and all(type(n) in (int, float) for n in numbers)):
        raise rule
    return _parse_range(name, kind, numbers, text)


def _parse_list(name: str, values: Sequence[Any], text: str) -> ValueList:
    if not values:
        raise UserError(f"the list of values of {name} is empty, got {text}")
    if len(values) > MAX_VALUES:
        raise UserError(f"{name} must have at most {MAX_VALUES:,} values, got {len(values):,}")
    if not all(isinstance(value, Scalar) for value in values):
        raise UserError(f"values of {name} must be numbers, strings, True, False or None")
    if not all(map(is_finite, values)):
        raise UserError(f"values of {name} must be finite, got {text}")
    # NOTE: 1, 1.0 and True are equal in Python, and Optuna does not distinguish them.
    if len(set(values)) < len(set(map(repr, values))):
        raise UserError(f"values of {name} must differ in more than their types, got {text}")
    return ValueList(tuple(values))


def _parse_range(name: str, kind: str, numbers: Sequence[Any], text: str) -> Range:
    if not all(map(is_finite, numbers)):
        raise UserError(f"the range of {name} must be finite, got {text}")
    low = numbers[0]
    high = numbers[1]
    points = numbers[2] if len(numbers) == 3 else None
    if not low < high:
        raise UserError(f"the range of {name} is empty, got {text}; write the lower bound first")
    if kind == "log" and low <= 0:
        raise UserError(f"the bounds of {name} must be over 0 for a log range, got {text}")
    if max(-low, high) > MAX_BOUND or (kind == "log" and low < 1 / MAX_BOUND):
        raise UserError(
            f"the bounds of {name} must be at most {MAX_BOUND:g} in size, and those of a log range "
            f"at least {1 / MAX_BOUND:g}, got {text}"
        )
    if type(low) is type(high) is int and max(-low, high) > MAX_INTEGER_BOUND:
        raise UserError(
            f"integer bounds of {name} must be at most {MAX_INTEGER_BOUND:,} in size, got {text}"
        )
    if points is not None and (type(points) is not int or not 2 <= points <= MAX_VALUES):
        raise UserError(f"{name} must have 2 to {MAX_VALUES:,} grid points, got {text}")
    return Range(low, high, kind == "log", points)


def is_finite(value: Scalar) -> bool:
    """Whether a value is no number, or one that a float can hold."""
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:
        # An integer beyond the largest float.
        return False


def grid_settings(space: Space) -> list[dict[str, Scalar]]:
    """Returns all combinations; the last name changes fastest.

    Raises:
        UserError: if a range has no number of points, or there are over `MAX_VALUES` combinations.
    """
    for name, values in space.items():
        if isinstance(values, Range) and values.points is None:
            kind = "log" if values.log else "uniform"
            raise UserError(
                f"a grid needs points of {name}: write {kind}({values.low}, {values.high}, 5), or "
                "sample with --method=quasi, random or tpe and --trials"
            )
    columns = [values.grid() for values in space.values()]
    count = math.prod(map(len, columns))
    if count > MAX_VALUES:
        raise UserError(f"a grid must have at most {MAX_VALUES:,} settings, got {count:,}")
    return [dict(zip(space, row, strict=True)) for row in itertools.product(*columns)]


def gin_flag(name: str, value: Scalar) -> str:
    """Returns the flag that binds a value; "@NAME()" and "%NAME" are gin's references.

    >>> gin_flag("AdamW.b1", 0.9), gin_flag("T5Config.positions", "rotary")
    ('--gin.AdamW.b1=0.9', "--gin.T5Config.positions='rotary'")
    """
    is_reference = isinstance(value, str) and value.startswith(("@", "%"))
    return f"--gin.{name}={value if is_reference else repr(value)}"


def gin_flags(params: Mapping[str, Scalar]) -> Sequence[str]:
    """Returns the flags that bind the parameters of one trial."""
    return [gin_flag(name, value) for name, value in params.items()]
