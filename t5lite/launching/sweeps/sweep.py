"""A sweep as a gin file binds it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from t5lite.core.errors import UserError, cut
from t5lite.core.fields import field_name
from t5lite.launching.sweeps.space import MAX_VALUES, Scalar, is_finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """The sweep of `t5lite launch --sweep_file=F`; flags of the same names override its fields.

    Args:
        values: for each binding a list of values, or a string such as "log(1e-4, 1e-2)".
        listed: alternatively the trials one by one, each a dict of bindings.
        method, trials, prune, minimize, maximize, seed: as the flags of `t5lite launch`.

    Raises:
        UserError: unless exactly one of `values` and `listed` is given.
    """

    gin_name: ClassVar[str] = "sweep"

    values: Mapping[str, Any] | None = None
    listed: Sequence[Any] | None = None
    method: str | None = None
    trials: int | None = None
    prune: str | None = None
    minimize: str | None = None
    maximize: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if bool(self.values) == bool(self.listed):
            raise UserError(
                f"a sweep file needs either {field_name(self, 'values')} or "
                f"{field_name(self, 'listed')}"
            )
        for name, values in (self.values or {}).items():
            if not isinstance(name, str) or not isinstance(values, str | list | tuple):
                raise UserError(
                    f"{field_name(self, 'values')} must bind names to lists or texts, as in "
                    f"{{'train.seed': [1, 2]}}, got {cut(repr({name: values}))}"
                )
        for row in self.listed or ():
            if not (isinstance(row, Mapping) and all(map(_is_setting, row.keys(), row.values()))):
                raise UserError(
                    f"{field_name(self, 'listed')} must be a list of dicts of finite numbers, "
                    "texts, True, False and None, as in [{'train.seed': 1}], got "
                    f"{cut(repr(row))}"
                )
        if len(self.listed or ()) > MAX_VALUES:
            raise UserError(
                f"{field_name(self, 'listed')} must have at most {MAX_VALUES:,} trials, got "
                f"{len(self.listed or ()):,}"
            )

    @property
    def space(self) -> dict[str, str]:
        """The search space as `parse_space` reads it."""
        values = self.values or {}
        return {name: v if isinstance(v, str) else repr(list(v)) for name, v in values.items()}


def _is_setting(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Scalar) and is_finite(value)
