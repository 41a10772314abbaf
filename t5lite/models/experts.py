"""A feed-forward layer of many experts; each token goes to one or two of them."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from t5lite.core.numbers import Number
from t5lite.models.adapters import Axis
from t5lite.models.config_fields import T5Fields
from t5lite.models.dropout import Dropout
from t5lite.models.feedforward import activated
from t5lite.models.initializers import ScaledInit
from t5lite.models.linear import LinearMap

# The Flax collection in which `Experts` reports the statistics of every row, by name.
EXPERT_STATISTICS = "experts"


def expert_capacity(config: T5Fields, tokens: int) -> int:
    """Returns how many tokens of a row one expert takes.

    >>> config = T5Fields(vocab_size=384, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
    ...     num_encoder_layers=1, num_experts=4, capacity_factor=1.25)
    >>> expert_capacity(config, 512)
    160
    """
    assert config.num_experts is not None
    even = config.experts_per_token * tokens / config.num_experts
    return min(tokens, math.ceil(even * config.capacity_factor))


def route(
    scores: Float[Array, "b l x"],
    is_token: Bool[Array, "b l"],
    *,
    choices: int,
    capacity: int,
) -> tuple[Float[Array, "b l x c"], dict[str, Float[Array, "b"]]]:
    """Returns the weight of each slot of each expert for each token, and statistics of each row.

    A token goes to its `choices` likeliest experts, weighted by their probabilities; several are
    divided by their sum. Each row assigns the slots of its experts in the order of its tokens, the
    first choice of a token before its second. A token that finds no slot has a weight of 0, as has
    padding, which takes none. So the result for a token depends on no later token, no other row,
    no mesh and no number of microbatches.

    Returns:
        The weights, and for each row `load_balance` (1 if tokens are spread evenly, at most the
        number of experts), `router_z` (the mean square of the scores' log-sum-exp) and `dropped`
        (the fraction of choices without a slot).

    Source: Fedus et al., "Switch Transformers", equations 4 to 6; Zoph et al., "ST-MoE", equation
    5; Lepikhin et al., "GShard", algorithm 1, for two choices.
    Differs from all of them in that a group of tokens is a row of the batch, and from GShard in
    that second choices do not wait for first choices of later tokens, which would leak the future.
    """
    rows, length, count = scores.shape
    tokens = is_token.astype(jnp.float32)
    probabilities = jax.nn.softmax(scores, axis=-1)
    gates, chosen = jax.lax.top_k(probabilities, choices)
    if choices > 1:
        gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
    choice = jax.nn.one_hot(chosen, count) * tokens[..., None, None]
    in_order = choice.reshape(rows, length * choices, count)
    taken = (jnp.cumsum(in_order, axis=1) - 1.0).reshape(choice.shape)
    slot = jnp.sum(taken * choice, axis=-1).astype(jnp.int32)
    fits = choice * (slot < capacity)[..., None]
    weights = jnp.einsum("blj,bljx,bljc->blxc", gates, fits, jax.nn.one_hot(slot, capacity))

    of_row = jnp.maximum(tokens.sum(axis=1), 1.0)
    share = choice[:, :, 0].sum(axis=1) / of_row[:, None]
    mean = (probabilities * tokens[..., None]).sum(axis=1) / of_row[:, None]
    z = jnp.square(jax.nn.logsumexp(scores, axis=-1)) * tokens
    return weights, {
        "load_balance": count * jnp.sum(share * mean, axis=-1),
        "router_z": z.sum(axis=1) / of_row,
        "dropped": (choice.sum(axis=(1, 2, 3)) - fits.sum(axis=(1, 2, 3))) / (choices * of_row),
    }


class Experts(nn.Module):
    """A feed-forward layer for each expert, and the router that chooses among them.

    Parameters:
        router/kernel [embed, expert_scores], truncated normal with variance 0.1 / embed;
        wi_0/kernel, ... [experts, embed, mlp] and wo/kernel [experts, mlp, embed], as in
        `FeedForward`.

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
        assert config.num_experts is not None
        experts = Axis("experts", config.num_experts)
        embed = Axis("embed", config.embed_dim)
        mlp = Axis("mlp", config.mlp_dim)

        def linear_map(
            name: str,
            einsum: str,
            inputs: Axis,
            outputs: Axis,
            stacked: tuple[Axis, ...] = (experts,),
            variance: float = 1.0,
        ) -> LinearMap:
            return LinearMap(
                einsum,
                inputs=(inputs,),
                outputs=(outputs,),
                initializer=ScaledInit(variance, "truncated_normal"),
                full_name=f"{self.full_name}/{name}",
                adapters=config.adapters,
                stacked=stacked,
                name=name,
            )

        scores = Axis("expert_scores", config.num_experts)
        router = linear_map("router", "ble,ex->blx", embed, scores, stacked=(), variance=0.1)
        weights, statistics = route(
            router(x.astype(jnp.float32)),
            is_token,
            choices=config.experts_per_token,
            capacity=expert_capacity(config, x.shape[1]),
        )
        for name, value in statistics.items():
            self.sow(EXPERT_STATISTICS, name, value)
        routed = _by_expert(jnp.einsum("blxc,ble->xbce", (weights > 0).astype(x.dtype), x))

        def widen(name: str) -> LinearMap:
            return linear_map(name, "xbce,xef->xbcf", embed, mlp)

        hidden = Dropout(name="dropout")(activated(config, routed, widen), dropout_rate)
        hidden = nn.with_logical_constraint(hidden, ("experts", "expert_batch", None, "mlp"))
        narrowed = linear_map("wo", "xbcf,xfe->xbce", mlp, embed)(hidden)
        return jnp.einsum("blxc,xbce->ble", weights.astype(x.dtype), _by_expert(narrowed))


def _by_expert(x: Float[Array, "x b c e"]) -> Float[Array, "x b c e"]:
    return nn.with_logical_constraint(x, ("experts", "expert_batch", None, "activation_embed"))
