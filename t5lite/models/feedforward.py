"""T5's feed-forward layer, plain (relu) or gated (gelu times linear)."""

import functools
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float

from t5lite.core.numbers import Number
from t5lite.models.adapters import Axis
from t5lite.models.config_fields import T5Fields
from t5lite.models.dropout import Dropout
from t5lite.models.initializers import ScaledInit
from t5lite.models.linear import LinearMap

# "gelu" is the tanh approximation, which published T5 checkpoints were trained with.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


def activated(
    config: T5Fields, x: Float[Array, "..."], widen: Callable[[str], LinearMap]
) -> Float[Array, "..."]:
    """Returns the product over activations of `x` widened by a map of its own, which `widen` makes
    from its name, and activated.
    """
    names = config.mlp_activations
    factors = [
        ACTIVATIONS[activation](widen("wi" if len(names) == 1 else f"wi_{index}")(x))
        for index, activation in enumerate(names)
    ]
    return math.prod(factors[1:], start=factors[0])


class FeedForward(nn.Module):
    """Widens to `mlp_dim` once for each activation, multiplies the results, and narrows again.

    Parameters:
        wi/kernel, or wi_0/kernel, wi_1/kernel, ... with several activations [embed, mlp],
        wo/kernel [mlp, embed]: truncated normal with variance 1 / fan-in. With `linear_bias` also
        wi/bias, ..., wo/bias, zeros.

    It is called like `experts.Experts`; it processes padding like tokens.

    Args:
        full_name: prefix of the maps' names, such as `decoder/layers/mlp`.
    """

    config: T5Fields
    full_name: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l e"], is_token: Bool[Array, "b l"], *, dropout_rate: Number | None
    ) -> Float[Array, "b l e"]:
        config = self.config
        embed = Axis("embed", config.embed_dim)
        mlp = Axis("mlp", config.mlp_dim)

        def linear_map(name: str, einsum: str, inputs: Axis, outputs: Axis) -> LinearMap:
            return LinearMap(
                einsum,
                inputs=(inputs,),
                outputs=(outputs,),
                initializer=ScaledInit(1.0, "truncated_normal"),
                full_name=f"{self.full_name}/{name}",
                adapters=config.adapters,
                has_bias=config.linear_bias,
                name=name,
            )

        def widen(name: str) -> LinearMap:
            return linear_map(name, "ble,ef->blf", embed, mlp)

        hidden = Dropout(name="dropout")(activated(config, x, widen), dropout_rate)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return linear_map("wo", "blf,fe->ble", mlp, embed)(hidden)
