"""A feed-forward layer of many experts, of which each token goes to one or two."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from t5lite.core.numbers import Number
from t5lite.models.config import T5Config
from t5lite.models.feedforward import activated
from t5lite.models.initializers import Scaled
from t5lite.models.layers import Dropout, Linear

# What `Experts` tells of every row, by name; `batch_loss` collects it.
COLLECTION = "experts"


def capacity(config: T5Config, tokens: int) -> int:
    """Returns how many tokens of a row one expert takes.

    >>> config = T5Config(vocab_size=384, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
    ...     num_encoder_layers=1, num_experts=4, capacity_factor=1.25)
    >>> capacity(config, 512)
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
    """Returns the weight of each place of each expert for each token, and what a row is told by.

    A token goes to its `choices` likeliest experts, its weights being their probabilities, of
    several divided by their sum. Each row shares out its own places in the order of its tokens, to
    each its first choice before its second. A token that finds no place has a weight of 0, as has
    padding, which takes none. So what becomes of a token depends on no later one, no other row, no
    mesh and no number of microbatches.

    Returns:
        The weights, and for each row `load_balance` (1 where tokens are spread evenly, at most the
        number of experts), `router_z` (the mean square of the scores' log-sum-exp) and `dropped`
        (the share of choices without a place).

    Source: Fedus et al., "Switch Transformers", equations 4 to 6; Zoph et al., "ST-MoE", equation
    5; Lepikhin et al., "GShard", algorithm 1, for two choices.
    Differs from all of them in that a group of tokens is a row of the batch, and from GShard in
    that second choices do not wait for first ones of later tokens, which would tell of the future.
    """
    (rows, length, count), tokens = scores.shape, is_token.astype(jnp.float32)
    probabilities = jax.nn.softmax(scores, axis=-1)
    gates, chosen = jax.lax.top_k(probabilities, choices)
    if choices > 1:
        gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
    choice = jax.nn.one_hot(chosen, count) * tokens[..., None, None]
    in_order = choice.reshape(rows, length * choices, count)
    taken = (jnp.cumsum(in_order, axis=1) - 1.0).reshape(choice.shape)
    place = jnp.sum(taken * choice, axis=-1).astype(jnp.int32)
    fits = choice * (place < capacity)[..., None]
    weights = jnp.einsum("blj,bljx,bljc->blxc", gates, fits, jax.nn.one_hot(place, capacity))

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
    """As many feed-forward layers as there are experts, and the router that chooses among them.

    Parameters:
        router/kernel [embed, expert_scores], truncated normal with variance 0.1 / embed;
        wi_0/kernel, ... [experts, embed, mlp] and wo/kernel [experts, mlp, embed], as in
        `FeedForward`.
    """

    config: T5Config

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l e"], is_token: Bool[Array, "b l"], *, dropout_rate: Number | None
    ) -> Float[Array, "b l e"]:
        config = self.config
        experts, embed, mlp = config.num_experts, config.embed_dim, config.mlp_dim
        assert experts is not None
        router = Linear(
            *("ble,ex->blx", (embed, experts), ("embed", "expert_scores")),
            *(Scaled(0.1, "truncated_normal"),),
            name="router",
        )
        weights, told = route(
            router(x.astype(jnp.float32)),
            is_token,
            choices=config.experts_per_token,
            capacity=capacity(config, x.shape[1]),
        )
        for name, value in told.items():
            self.sow(COLLECTION, name, value)
        init = Scaled(1.0, "truncated_normal")
        sent = _sent(jnp.einsum("blxc,ble->xbce", (weights > 0).astype(x.dtype), x))

        def wide(name: str) -> Linear:
            shape, axes = (experts, embed, mlp), ("experts", "embed", "mlp")
            return Linear("xbce,xef->xbcf", shape, axes, init, name=name)

        hidden = Dropout(name="dropout")(activated(config, sent, wide), dropout_rate)
        hidden = nn.with_logical_constraint(hidden, ("experts", "expert_batch", None, "mlp"))
        narrow = Linear(
            *("xbcf,xfe->xbce", (experts, mlp, embed), ("experts", "mlp", "embed"), init), name="wo"
        )
        return jnp.einsum("blxc,xbce->ble", weights.astype(x.dtype), _sent(narrow(hidden)))


def _sent(x: Float[Array, "x b c e"]) -> Float[Array, "x b c e"]:
    return nn.with_logical_constraint(x, ("experts", "expert_batch", None, "activation_embed"))
