"""T5's feed-forward layer, plain (relu) or gated (gelu times linear)."""

import math
from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from t5lite.core.numbers import Number
from t5lite.models.config import ACTIVATIONS, T5Config
from t5lite.models.initializers import Scaled
from t5lite.models.layers import Dropout, Linear


def activated(
    config: T5Config, x: Float[Array, "..."], wide: Callable[[str], Linear]
) -> Float[Array, "..."]:
    """Returns the product of `x` widened once for each activation, by the map that `wide` makes."""
    names = config.mlp_activations
    made = [
        ACTIVATIONS[activation](wide("wi" if len(names) == 1 else f"wi_{index}")(x))
        for index, activation in enumerate(names)
    ]
    return math.prod(made[1:], start=made[0])


class FeedForward(nn.Module):
    """Widens to `mlp_dim` once for each activation, multiplies the results, and narrows again.

    Parameters:
        wi/kernel, or wi_0/kernel, wi_1/kernel, ... with several activations [embed, mlp],
        wo/kernel [mlp, embed]: truncated normal with variance 1 / fan-in.

    Called like `experts.Experts`, which takes its place; every place is worked on, token or not.
    """

    config: T5Config

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l e"], is_token: Bool[Array, "b l"], *, dropout_rate: Number | None
    ) -> Float[Array, "b l e"]:
        config = self.config
        init = Scaled(1.0, "truncated_normal")

        def wide(name: str) -> Linear:
            shape = (config.embed_dim, config.mlp_dim)
            return Linear("ble,ef->blf", shape, ("embed", "mlp"), init, name=name)

        hidden = Dropout(name="dropout")(activated(config, x, wide), dropout_rate)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return Linear(
            "blf,fe->ble", (config.mlp_dim, config.embed_dim), ("mlp", "embed"), init, name="wo"
        )(hidden)
