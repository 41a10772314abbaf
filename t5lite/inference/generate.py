"""Writing targets with a trained encoder-decoder."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from t5lite.models.architectures import Batch, EncoderDecoder


def greedy(
    model: EncoderDecoder, params: Any, batch: Batch, *, length: int, eos_id: int
) -> Int[Array, "b l"]:
    """Returns the likeliest token after likeliest token, `length` at most, then padding (0).

    Args:
        batch: `encoder_input_tokens` and `encoder_segment_ids`.
        eos_id: ends a row; it is part of the result.
    """
    variables = {"params": params}
    rows = batch["encoder_input_tokens"].shape[0]
    cache: Any = model.apply(variables, batch, capacity=length, method="start")

    def write(position: Array, carry: Any) -> Any:
        latest, ended, written, cache = carry
        step = {
            "decoder_input_tokens": latest[:, None],
            "decoder_segment_ids": jnp.ones((rows, 1), jnp.int32),
        }
        logits: Any
        logits, cache = model.apply(variables, step, cache, method="extend")
        token = jnp.where(ended, 0, jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32))
        return token, ended | (token == eos_id), written.at[:, position].set(token), cache

    # T5 begins with padding.
    latest, ended = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    carry = (latest, ended, jnp.zeros((rows, length), jnp.int32), cache)
    return jax.lax.fori_loop(0, length, write, carry)[2]
