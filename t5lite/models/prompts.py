"""The input of a stack: embedded tokens, and before those of each example a prompt."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5lite.core.batches import Batch
from t5lite.models.adapters import Axis
from t5lite.models.config_fields import T5Fields
from t5lite.models.embedding import Embedding, offsets_name
from t5lite.models.linear import add_parameter
from t5lite.models.positions import positions_in_examples
from t5lite.models.token_adapters import InputSite, input_adapters


class InputPrompt(nn.Module):
    """The vectors of all adapters of the input, in order.

    A batch has as many tokens, of any id, at the start of each example, so that packing, positions
    and masks count them like others.

    Parameters:
        What the adapters add. No mesh axis splits their width, as in `LookupTable`.
    """

    config: T5Fields

    def setup(self) -> None:
        site = InputSite(
            embed=Axis("activation_embed", self.config.embed_dim),
            parameter=functools.partial(add_parameter, self),
        )
        adapters = input_adapters(self.config.adapters)
        self.vectors: Any = jnp.concatenate([adapter.vectors(site) for adapter in adapters])

    def __call__(
        self, x: Float[Array, "b l e"], in_examples: Int[Array, "b l"]
    ) -> Float[Array, "b l e"]:
        """Returns embedded tokens with the vectors in place of the first of each example.

        Args:
            in_examples: positions of the tokens in their examples.
        """
        last = self.vectors.shape[0] - 1
        vectors = jnp.take(self.vectors, jnp.minimum(in_examples, last), axis=0)
        return jnp.where((in_examples <= last)[..., None], vectors.astype(x.dtype), x)


def make_prompt(config: T5Fields) -> InputPrompt | None:
    """Returns the prompt of a model; None if no adapter adds one."""
    if not input_adapters(config.adapters):
        return None
    return InputPrompt(config.encoder_config() if config.num_encoder_layers else config)


def embedded_tokens(
    embedding: Embedding, batch: Batch, stack: str, prompt: InputPrompt | None = None
) -> Float[Array, "b l e"]:
    """Returns the embedded tokens of "encoder" or "decoder", with their offsets in the batch."""
    x = embedding(batch[f"{stack}_input_tokens"])
    if prompt is not None:
        x = prompt(x, positions_in_examples(batch[f"{stack}_segment_ids"]))
    offsets = batch.get(offsets_name(stack))
    return x if offsets is None else x + offsets.astype(x.dtype)
