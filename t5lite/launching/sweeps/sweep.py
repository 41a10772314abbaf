"""A sweep as a gin file says it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What `t5lite launch --sweep_file=F` varies; the flags of the same names win.

    Args:
        values: for each binding a list of values, or a text such as "log(1e-4, 1e-2)".
        listed: or the trials one by one, each a dict of bindings.
        method, trials, prune, minimize, maximize, seed: as the flags of `t5lite launch`.

    Raises:
        UserError: where both or none of `values` and `listed` are there.
    """

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
            raise UserError("sweep needs either sweep.values or sweep.listed")
        if any(not isinstance(row, Mapping) for row in self.listed or ()):
            raise UserError("sweep.listed must be a list of dicts, as in [{'train.seed': 1}]")

    @property
    def space(self) -> dict[str, str]:
        """What `space.parse_space` reads."""
        values = self.values or {}
        return {name: v if isinstance(v, str) else repr(list(v)) for name, v in values.items()}
