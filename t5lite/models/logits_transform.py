"""What encoder-only models apply before their logits: BERT's transformation."""

import flax.linen as nn
from jaxtyping import Array, Float

from t5lite.models.adapters import Axis
from t5lite.models.config_fields import T5Fields
from t5lite.models.feedforward import ACTIVATIONS
from t5lite.models.initializers import ScaledInit
from t5lite.models.linear import LinearMap
from t5lite.models.norms import make_norm


class LogitsTransform(nn.Module):
    """A linear map of the model's width, the first of `mlp_activations`, and a norm.

    Parameters:
        dense/kernel [embed, activation_embed], truncated normal with variance 1 / embed; with
        `linear_bias` dense/bias, zeros; norm/scale.
    """

    config: T5Fields

    def setup(self) -> None:
        config = self.config
        self.dense = LinearMap(
            "ble,ef->blf",
            inputs=(Axis("embed", config.embed_dim),),
            outputs=(Axis("activation_embed", config.embed_dim),),
            initializer=ScaledInit(1.0, "truncated_normal"),
            full_name="logits_transform/dense",
            adapters=config.adapters,
            has_bias=config.linear_bias,
        )
        self.norm = make_norm(config)

    def __call__(self, x: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
        activation = ACTIVATIONS[self.config.mlp_activations[0]]
        normed: Float[Array, "b l e"] = self.norm(activation(self.dense(x)))
        return normed
