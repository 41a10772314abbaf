"""Batches of several examples a row, and logits from a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests import small


def packed(seed, **sizes):
    """Two examples in each row."""
    one, two = small.batch(seed, **sizes), small.batch(seed + 1, **sizes)
    batch = {name: np.concatenate([one[name], two[name]], axis=1) for name in one}
    for side in ("encoder", "decoder"):
        name = f"{side}_segment_ids"
        batch[name] = np.concatenate([one[name], 2 * two[name]], axis=1)
    return batch


def prefixed(seed):
    """Two examples of seven targets in each row, with prefixes of 4 and 3 tokens."""
    batch = packed(seed, targets=7)
    prefix = np.zeros_like(batch["decoder_segment_ids"])
    prefix[:, :4] = 1
    prefix[:, 7:10] = 1
    prefix[batch["decoder_segment_ids"] == 0] = 0
    return {**batch, "decoder_causal_attention": prefix}


@functools.cache
def _programs(model):
    """Compiles once for each shape, whichever test asks."""

    def start(variables, batch, capacity):
        return model.apply(variables, batch, capacity=capacity, method="start")

    def extend(variables, batch, cache):
        x, cache = model.apply(variables, batch, cache, method="extend")
        return model.apply(variables, x, method="logits"), cache

    return jax.jit(start, static_argnums=2), jax.jit(extend)


def started(model, variables, batch, capacity):
    """The cache before the first token of a decoder."""
    return _programs(model)[0](variables, jax.tree.map(jnp.asarray, batch), capacity)


def extended(model, variables, batch, cache):
    """Logits of the tokens of a batch, and the cache with them."""
    return _programs(model)[1](variables, batch, cache)


def logits_by_pieces(model, params, batch, sizes):
    """Logits of the decoder's tokens, processed in pieces of these sizes."""
    variables = {"params": params}
    cache, at, logits = started(model, variables, batch, sum(sizes)), 0, []
    for size in sizes:
        part = {k: v[:, at : at + size] for k, v in batch.items() if k.startswith("decoder")}
        made, cache = extended(model, variables, part, cache)
        logits.append(made)
        at += size
    assert int(cache.length) == at
    return np.concatenate(logits, axis=1)
