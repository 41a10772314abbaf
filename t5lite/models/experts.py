"""A feed-forward layer of many experts, of which each token goes to one or two."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from t5lite.core.numbers import Number
from t5lite.models.config import ACTIVATIONS, T5Config
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
    several divided by their sum. Each row shares out its own places: first all first choices in the
    order of the tokens, then the second ones. A token that finds no place has a weight of 0, as has
    padding, which takes none. So what becomes of a row depends on no other row, on no mesh and on
    no number of microbatches.

    Returns:
        The weights, and for each row `load_balance` (1 where tokens are spread evenly, at most the
        number of experts), `router_z` (the mean square of the scores' log-sum-exp) and `dropped`
        (the share of choices without a place).

    Source: Fedus et al., "Switch Transformers", equations 4 to 6; Zoph et al., "ST-MoE", equation
    5; Lepikhin et al., "GShard", algorithm 1, for two choices.
    Differs from all of them in that a group of tokens is a row of the batch.
    """
    count, tokens = scores.shape[2], is_token.astype(jnp.float32)
    probabilities = jax.nn.softmax(scores, axis=-1)
    left, used = probabilities, jnp.zeros((scores.shape[0], 1, count))
    places, gates, taken = [], [], jnp.zeros(scores.shape[0])
    first = None
    for _ in range(choices):
        choice = jax.nn.one_hot(jnp.argmax(left, axis=-1), count) * tokens[..., None]
        first = choice if first is None else first
        left = jnp.where(choice > 0, -1.0, left)
        place = jnp.sum((jnp.cumsum(choice, axis=1) - 1.0 + used) * choice, axis=-1)
        used = used + jnp.sum(choice, axis=1, keepdims=True)
        fits = choice * (place < capacity)[..., None]
        places.append(
            fits[..., None] * jax.nn.one_hot(place.astype(jnp.int32), capacity)[..., None, :]
        )
        gates.append(jnp.sum(probabilities * choice, axis=-1))
        taken = taken + jnp.sum(fits, axis=(1, 2))
    total = sum(gates[1:], start=gates[0]) if choices > 1 else jnp.ones_like(gates[0])
    total = jnp.where(total > 0, total, 1.0)
    weights = sum(
        (
            (gate / total)[..., None, None] * place
            for gate, place in zip(gates, places, strict=True)
        ),
        start=jnp.zeros((*scores.shape, capacity)),
    )
    assert first is not None
    of_row = jnp.maximum(tokens.sum(axis=1), 1.0)
    share = first.sum(axis=1) / of_row[:, None]
    mean = (probabilities * tokens[..., None]).sum(axis=1) / of_row[:, None]
    z = jnp.square(jax.nn.logsumexp(scores, axis=-1)) * tokens
    return weights, {
        "load_balance": count * jnp.sum(share * mean, axis=-1),
        "router_z": z.sum(axis=1) / of_row,
        "dropped": 1.0 - taken / (choices * of_row) - (tokens.sum(axis=1) == 0),
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
        init, names = Scaled(1.0, "truncated_normal"), config.mlp_activations
        sent = _sent(jnp.einsum("blxc,ble->xbce", (weights > 0).astype(x.dtype), x))
        branches = []
        for index, activation in enumerate(names):
            name = "wi" if len(names) == 1 else f"wi_{index}"
            wide = Linear(
                *("xbce,xef->xbcf", (experts, embed, mlp), ("experts", "embed", "mlp"), init),
                name=name,
            )
            branches.append(ACTIVATIONS[activation](wide(sent)))
        hidden = Dropout(name="dropout")(math.prod(branches[1:], start=branches[0]), dropout_rate)
        hidden = nn.with_logical_constraint(hidden, ("experts", "expert_batch", None, "mlp"))
        narrow = Linear(
            *("xbcf,xfe->xbce", (experts, mlp, embed), ("experts", "mlp", "embed"), init), name="wo"
        )
        return jnp.einsum("blxc,xbce->ble", weights.astype(x.dtype), _sent(narrow(hidden)))


def _sent(x: Float[Array, "x b c e"]) -> Float[Array, "x b c e"]:
    return nn.with_logical_constraint(x, ("experts", "expert_batch", None, "activation_embed"))
