"""Batches of several examples a row, and logits from a cache."""

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


def extended(model, variables, batch, cache):
    """Logits of the tokens of a batch, and the cache with them."""
    x, cache = model.apply(variables, batch, cache, method="extend")
    return model.apply(variables, x, method="logits"), cache


def logits_by_pieces(model, params, batch, sizes):
    """Logits of the decoder's tokens, processed in pieces of these sizes."""
    variables = {"params": params}
    start = jax.jit(lambda v, b: model.apply(v, b, capacity=sum(sizes), method="start"))
    extend = jax.jit(lambda v, b, cache: extended(model, v, b, cache))
    cache, at, logits = start(variables, jax.tree.map(jnp.asarray, batch)), 0, []
    for size in sizes:
        part = {k: v[:, at : at + size] for k, v in batch.items() if k.startswith("decoder")}
        made, cache = extend(variables, part, cache)
        logits.append(made)
        at += size
    assert int(cache.length) == at
    return np.concatenate(logits, axis=1)
