"""T5's feed-forward layer, plain (relu) or gated (gelu times linear)."""

import math

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from t5lite.core.numbers import Number
from t5lite.models.config import ACTIVATIONS, T5Config
from t5lite.models.initializers import Scaled
from t5lite.models.layers import Dropout, Linear


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
        names = config.mlp_activations
        branches = []
        for index, activation in enumerate(names):
            name = "wi" if len(names) == 1 else f"wi_{index}"
            wide = Linear(
                "ble,ef->blf", (config.embed_dim, config.mlp_dim), ("embed", "mlp"), init, name=name
            )(x)
            branches.append(ACTIVATIONS[activation](wide))
        hidden = Dropout(name="dropout")(math.prod(branches[1:], start=branches[0]), dropout_rate)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return Linear(
            "blf,fe->ble", (config.mlp_dim, config.embed_dim), ("mlp", "embed"), init, name="wo"
        )(hidden)
