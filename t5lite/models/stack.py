"""What encoder and decoder share: a layer scanned over the depth, so that compile time does not
grow with it.

The parameters of all layers are stacked along a first axis named "layers".
"""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from t5lite.models.config import REMAT_POLICIES, T5Config
from t5lite.models.experts import COLLECTION, Experts
from t5lite.models.feedforward import FeedForward

Stream = Float[Array, "b l e"]


def constrained(x: Stream) -> Stream:
    """Places the stream between layers on the mesh."""
    return nn.with_logical_constraint(x, ("batch", "length", "activation_embed"))


def feed_forward(config: T5Config) -> FeedForward | Experts:
    """The layer's last part: one feed-forward layer, or many experts."""
    return FeedForward(config) if config.num_experts is None else Experts(config)


def scanned_layers(
    layer: type[nn.Module], config: T5Config, length: int, in_axes: dict[str, Any]
) -> Any:
    """`layer` in a loop over its stacked parameters.

    Args:
        in_axes: for each of its methods, how the arguments behind the stream are shared out.
    """
    policy = REMAT_POLICIES[config.remat]
    if policy is not None:
        # The loop keeps XLA from merging the two computations, so the barrier can go.
        layer = nn.remat(layer, policy=policy, prevent_cse=False)
    common: dict[str, Any] = {
        "variable_axes": {"params": 0, COLLECTION: 0},
        "split_rngs": {"params": True, "dropout": True},
        "length": length,
        "unroll": min(config.scan_unroll, length),
        "metadata_params": {nn.PARTITION_NAME: "layers"},
    }
    methods = {name: {**common, "in_axes": axes} for name, axes in in_axes.items()}
    return nn.scan(layer, **common, methods=methods)(config)


def unstacked(params: Any, length: int) -> dict[str, Any]:
    """Returns the parameters of each layer by its number, of stacked ones or of such already.

    Who runs a stack many times takes them apart once: a loop over the depth would copy each
    layer's parameters out of the stack in every run.
    """
    if "0" in params:
        return dict(params)
    return {str(n): jax.tree.map(lambda x, n=n: x[n], params) for n in range(length)}
