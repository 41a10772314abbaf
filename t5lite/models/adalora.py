"""AdaLoRA: low-rank updates in the form of a singular value decomposition.

How a run shares ranks out between maps is in `training.rank_budget`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Array, Float

from t5lite.core.fields import check_counts, check_fields, field_name
from t5lite.core.patterns import check_patterns, matches
from t5lite.models.adapters import (
    AddedProducts,
    Axis,
    MapFunction,
    MapSite,
    MapWeights,
    broadcast_to_axes,
)
from t5lite.models.initializers import ConstantInit, NormalInit
from t5lite.models.linear import linear
from t5lite.models.lora import RANK_LETTER, check_dropout, dropped_inputs, factor_product

# The parameters of a map: right singular vectors, singular values, left singular vectors.
ADALORA_DOWN = "lora_down"
ADALORA_VALUES = "lora_values"
ADALORA_UP = "lora_up"

# NOTE: peft adds it to the rank that it divides alpha by.
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaLoRA:
    """Adds scale * up(values * down(x)) to linear maps, whose kernels stay as they are.

    Parameters of a map, beside its kernel [*inputs, *outputs]: lora_down [*inputs, adapter] and
    lora_up [adapter, *outputs], normal with standard deviation 0.02, and lora_values [adapter],
    zeros. Training it needs a `RankBudget`, which sets the least important values of all maps to 0.

    Args:
        targets: regular expressions; the maps whose whole name one of them matches are adapted. By
            default all maps of attention and feed-forward layers, as in the paper.
        rank: number of singular values of each map before any is removed.
        alpha: the update is scaled by alpha / rank, whatever is removed.
        dropout_rate: of the input of `down` in training, in [0, 1); a constant of the program.

    Raises:
        UserError: if a field is out of range.

    Source: Zhang et al. 2023, section 3.1; scale and first values of
        huggingface/peft@v0.21.2:src/peft/tuners/adalora/layer.py.
    """

    targets: Sequence[str] = (".*attention/(query|key|value|out)", ".*mlp/w.*")
    rank: int = 12
    alpha: float = 16.0
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        check_patterns(field_name(self, "targets"), self.targets)
        object.__setattr__(self, "targets", tuple(self.targets))
        check_counts(self, "rank")
        check_fields(self, ("alpha",), "over 0", lambda alpha: alpha > 0)
        check_fields(self, ("dropout_rate",), "in [0, 1)", lambda rate: 0 <= rate < 1)

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return self.alpha / (self.rank + _EPSILON)

    def attaches_to(self, name: str) -> bool:
        """Whether it adapts the map of this full name."""
        return matches(name, self.targets)

    def wrap(self, site: MapSite, apply: MapFunction) -> MapFunction:
        """Returns the map with the update."""
        check_dropout(self, site, self.dropout_rate)
        rank = Axis("adapter", self.rank)
        normal = NormalInit(0.02)
        down = site.parameter(ADALORA_DOWN, normal, *site.stacked, *site.inputs, rank)
        values = site.parameter(ADALORA_VALUES, ConstantInit(0.0), *site.stacked, rank)
        up = site.parameter(ADALORA_UP, normal, *site.stacked, rank, *site.outputs)
        to_rank, from_rank = site.through(RANK_LETTER)
        middle = to_rank.partition("->")[2]

        def adapted(x: Float[Array, "..."]) -> Float[Array, "..."]:
            hidden = linear(to_rank, dropped_inputs(site, x, self.dropout_rate), down)
            own = values.astype(x.dtype)
            hidden = hidden * broadcast_to_axes(own, site.letters.stacked + RANK_LETTER, middle)
            return apply(x) + self.scale * linear(from_rank, hidden, up)

        return adapted

    def products(self, site: MapSite) -> list[AddedProducts]:
        """Returns the products of the update, with the singular values between them."""
        down = (ADALORA_DOWN, self.rank * site.num_inputs)
        up = (ADALORA_UP, self.rank * site.num_outputs)
        return [AddedProducts("input", (down, (ADALORA_VALUES, 0), up))]

    def merged(
        self, site: MapSite, weights: MapWeights, added: Mapping[str, Float[Array, "..."]]
    ) -> MapWeights:
        """Returns the kernel and the bias of the map with the update."""
        stacked = site.letters.stacked
        letters = f"{stacked}{site.letters.inputs}{RANK_LETTER}"
        values = broadcast_to_axes(added[ADALORA_VALUES], stacked + RANK_LETTER, letters)
        change: Any = factor_product(site, added[ADALORA_DOWN] * values, added[ADALORA_UP])
        return MapWeights(weights.kernel + self.scale * change, weights.bias)
