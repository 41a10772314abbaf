"""What a sweep varies: for each gin binding a list of values or a range."""

import ast
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, check_choice

Scalar = int | float | str | bool | None
RANGES = ("log", "uniform", "range")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, whole ones where both are written so.

    Args:
        log: whether equal ratios are equally likely, or equal differences.
        points: of a grid; None where it is for drawing from only.
    """

    low: int | float
    high: int | float
    log: bool = False
    points: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it has whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ends(self) -> tuple[Scalar, ...]:
        """Returns the values whose validity says most about all others."""
        return self.low, self.high

    def at(self, place: float) -> Scalar:
        """Returns the value at a place in [0, 1) of the range."""
        # A whole number is as likely as any other, the upper end too.
        high = self.high + 1 if self.is_whole else self.high
        if self.log:
            value = self.low * (high / self.low) ** place
        else:
            value = self.low + (high - self.low) * place
        return int(value) if self.is_whole else float(f"{value:.12g}")

    def grid(self) -> list[Scalar]:
        """Returns `points` values at equal distances."""
        count = self.points or 0
        parts = [i / (count - 1) for i in range(count)]
        if self.log:
            values: list[Any] = [self.low * (self.high / self.low) ** part for part in parts]
        else:
            values = [self.low + (self.high - self.low) * part for part in parts]
        values[0], values[-1] = self.low, self.high
        # Twelve digits: 0.001 and not 0.0009999999999999998.
        rounded = [round(v) if self.is_whole else float(f"{v:.12g}") for v in values]
        return list(dict.fromkeys(rounded))


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Scalar, ...]

    def ends(self) -> tuple[Scalar, ...]:
        """Returns all of them."""
        return self.values

    def at(self, place: float) -> Scalar:
        """Returns the value at a place in [0, 1) of the list."""
        return self.values[int(place * len(self.values))]

    def grid(self) -> list[Scalar]:
        """Returns all of them."""
        return list(self.values)


Space = Mapping[str, Range | Choice]


def parse_space(texts: Mapping[str, str]) -> dict[str, Range | Choice]:
    """Reads what is varied: `[0.0, 0.1]`, `range(3)`, `uniform(0, 0.3)`, `log(1e-4, 1e-2)`.

    A third number of `uniform` or `log` is how many points a grid takes: `log(1e-4, 1e-2, 5)`.

    Raises:
        UserError: for anything else, an empty range, or a value that is no number, text, True,
            False or None.
    """
    return {name: _parse(name, text) for name, text in texts.items()}


def _parse(name: str, text: str) -> Range | Choice:
    rule = (
        f"what {name} is swept over must be a list such as [0.0, 0.1], range(3), "
        f"uniform(0.0, 0.3) or log(1e-4, 1e-2), got {text}"
    )
    try:
        body = ast.parse(text.strip(), mode="eval").body
        if isinstance(body, ast.Call) and isinstance(body.func, ast.Name) and not body.keywords:
            kind, numbers = body.func.id, [ast.literal_eval(arg) for arg in body.args]
        else:
            kind, numbers = "list", ast.literal_eval(body)
    except (SyntaxError, ValueError) as error:
        raise UserError(rule) from error
    if kind != "list":
        check_choice(f"what {name} is swept over", kind, RANGES)
    if not isinstance(numbers, list | tuple):
        raise UserError(rule)
    if kind == "range" and all(type(n) is int for n in numbers) and 1 <= len(numbers) <= 3:
        if numbers[2:] == [0]:
            raise UserError(rule)
        kind, numbers = "list", list(range(*numbers))
    if kind == "list":
        if not numbers:
            raise UserError(f"what {name} is swept over is empty, got {text}")
        if not all(isinstance(value, Scalar) for value in numbers):
            raise UserError(f"values of {name} must be numbers, texts, True, False or None")
        if any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
            raise UserError(f"values of {name} must be finite, got {text}")
        if len(set(map(repr, numbers))) < len(numbers):
            raise UserError(f"values of {name} must be different from each other, got {text}")
        return Choice(tuple(numbers))
    if not (2 <= len(numbers) <= 3 and all(type(n) in (int, float) for n in numbers)):
        raise UserError(rule)
    if not all(math.isfinite(n) for n in numbers):
        raise UserError(f"the range of {name} must be finite, got {text}")
    low, high, points = (*numbers, None)[:3]
    if not low < high:
        raise UserError(f"the range of {name} is empty: got {text}; the lower end goes first")
    if kind == "log" and low <= 0:
        raise UserError(f"the range of {name} must be over 0 to be logarithmic, got {text}")
    if points is not None and (type(points) is not int or points < 2):
        raise UserError(f"{name} needs at least 2 points on a grid, got {text}")
    return Range(low, high, kind == "log", points)


def grid(space: Space) -> list[dict[str, Scalar]]:
    """Returns all combinations, the last name changing fastest.

    Raises:
        UserError: for a range without a number of points.
    """
    for name, values in space.items():
        if isinstance(values, Range) and values.points is None:
            kind = "log" if values.log else "uniform"
            raise UserError(
                f"a grid needs points of {name}: write {kind}({values.low}, {values.high}, 5), or "
                "draw from it with --method=quasi, random or tpe and --trials"
            )
    columns = [values.grid() for values in space.values()]
    return [dict(zip(space, row, strict=True)) for row in itertools.product(*columns)]


def binding(name: str, value: Scalar) -> str:
    """Returns the flag that gives a binding this value; "@NAME()" and "%NAME" are gin's references.

    >>> binding("AdamW.b1", 0.9), binding("T5Config.positions", "rotary")
    ('--gin.AdamW.b1=0.9', "--gin.T5Config.positions='rotary'")
    """
    is_reference = isinstance(value, str) and value.startswith(("@", "%"))
    return f"--gin.{name}={value if is_reference else repr(value)}"


def bindings(params: Mapping[str, Scalar]) -> Sequence[str]:
    """Returns the flags of one trial."""
    return [binding(name, value) for name, value in params.items()]
