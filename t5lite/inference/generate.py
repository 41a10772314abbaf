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
    encoded: Any = model.apply(variables, batch, method="encode")
    num_rows = batch["encoder_input_tokens"].shape[0]

    def write(position: Array, written: Int[Array, "b l"]) -> Int[Array, "b l"]:
        # NOTE: the decoder reads all that was written anew for every token.
        inputs = jnp.pad(written[:, :-1], ((0, 0), (1, 0)))
        logits: Any = model.apply(
            variables,
            encoded,
            {
                "decoder_input_tokens": inputs,
                "decoder_segment_ids": jnp.ones_like(inputs),
                "encoder_segment_ids": batch["encoder_segment_ids"],
            },
            method="decode",
        )
        token = jnp.argmax(logits[:, position], axis=-1).astype(jnp.int32)
        ended = (written == eos_id).any(axis=1)
        return written.at[:, position].set(jnp.where(ended, 0, token))

    return jax.lax.fori_loop(0, length, write, jnp.zeros((num_rows, length), jnp.int32))
