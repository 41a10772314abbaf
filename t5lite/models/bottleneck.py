"""Bottleneck adapters: a small feed-forward network after sub-layers, with a sum around it."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.core.fields import check_counts, check_field_choice, field_name
from t5lite.core.patterns import check_patterns, matches
from t5lite.models.adapters import AddedProducts, Axis, MapFunction, MapSite, broadcast_to_axes
from t5lite.models.feedforward import ACTIVATIONS
from t5lite.models.initializers import ConstantInit, ScaledInit
from t5lite.models.linear import linear

# Of the axis that the adapter adds; no einsum string of the models uses it.
BOTTLENECK_LETTER = "r"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """Adds up(activation(down(y))) to the result y of linear maps, before dropout and the residual.

    Parameters of a map: bottleneck_down [*outputs, adapter], bottleneck_down_bias [adapter],
    bottleneck_up [adapter, *outputs] and bottleneck_up_bias [*outputs]. `up` and the biases start
    at 0, so the model starts unchanged. Each expert has its own.

    Args:
        targets: regular expressions; the maps whose whole name one of them matches are adapted. By
            default the last maps of attention and of feed-forward layers, after Houlsby; of
            feed-forward layers alone, (".*mlp/wo",), after Pfeiffer.
        bottleneck_dim: width between `down` and `up`.
        activation: between them; one of `T5Config.mlp_activations`.

    Raises:
        UserError: if a field is out of range.

    Source: Houlsby et al. 2019, section 2.1; Pfeiffer et al. 2020, "MAD-X", section 4.
    Differs: Houlsby's `up` starts near 0.
    """

    targets: Sequence[str] = (".*attention/out", ".*mlp/wo")
    bottleneck_dim: int = 64
    activation: str = "gelu"

    def __post_init__(self) -> None:
        check_patterns(field_name(self, "targets"), self.targets)
        object.__setattr__(self, "targets", tuple(self.targets))
        check_counts(self, "bottleneck_dim")
        check_field_choice(self, "activation", ACTIVATIONS)

    def attaches_to(self, name: str) -> bool:
        """Whether it adapts the map of this full name."""
        return matches(name, self.targets)

    def products(self, site: MapSite) -> list[AddedProducts]:
        """Returns the two maps of the network."""
        size = self.bottleneck_dim * site.num_outputs
        down = (("bottleneck_down", size), ("bottleneck_down_bias", 0))
        return [AddedProducts("result", (*down, ("bottleneck_up", size)))]

    def wrap(self, site: MapSite, apply: MapFunction) -> MapFunction:
        """Returns the map with the network after it."""
        assert BOTTLENECK_LETTER not in site.einsum, site.einsum
        added = Axis("adapter", self.bottleneck_dim)
        num_outputs = len(site.stacked) + len(site.outputs)
        # As LoRA: uniform in +-1 / sqrt(inputs).
        uniform = ScaledInit(
            1 / 3, "uniform", in_axes=tuple(range(len(site.stacked), num_outputs)), out_axes=(-1,)
        )
        zeros = ConstantInit(0.0)
        down = site.parameter("bottleneck_down", uniform, *site.stacked, *site.outputs, added)
        down_bias = site.parameter("bottleneck_down_bias", zeros, *site.stacked, added)
        up = site.parameter("bottleneck_up", zeros, *site.stacked, added, *site.outputs)
        up_bias = site.parameter("bottleneck_up_bias", zeros, *site.stacked, *site.outputs)
        _, stacked, _, outputs, result = site.letters
        middle = "".join(axis for axis in result if axis not in outputs) + BOTTLENECK_LETTER
        narrow = f"{result},{stacked}{outputs}{BOTTLENECK_LETTER}->{middle}"
        widen = f"{middle},{stacked}{BOTTLENECK_LETTER}{outputs}->{result}"

        def adapted(x: Float[Array, "..."]) -> Float[Array, "..."]:
            y = apply(x)
            bias = jnp.asarray(down_bias, y.dtype)
            hidden = linear(narrow, y, down)
            hidden = hidden + broadcast_to_axes(bias, stacked + BOTTLENECK_LETTER, middle)
            hidden = ACTIVATIONS[self.activation](hidden)
            bias = jnp.asarray(up_bias, y.dtype)
            change = linear(widen, hidden, up)
            return y + change + broadcast_to_axes(bias, stacked + outputs, result)

        return adapted
