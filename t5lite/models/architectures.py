"""Whole models: from a batch to logits. What a batch holds is named in `data.features`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from t5lite.core.numbers import Number
from t5lite.models.config import T5Config
from t5lite.models.layers import Embedding
from t5lite.models.masks import causal_mask, prefix_mask, segment_mask
from t5lite.models.stack import Decoder, Encoder

# Arrays by name; NumPy's and JAX's, and inside `jax.eval_shape` their shapes alone.
Batch = Mapping[str, Any]


class EncoderDecoder(nn.Module):
    """T5: an encoder that sees all of the input, and a decoder that writes the target.

    Parameters:
        token_embedder/embedding, encoder/..., decoder/...
    """

    config: T5Config

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b k e"]:
        """Returns the encoder's output for `encoder_input_tokens`."""
        segments = batch["encoder_segment_ids"]
        x = self.token_embedder(batch["encoder_input_tokens"])
        return self.encoder(x, segment_mask(segments, segments), dropout_rate=dropout_rate)

    def decode(
        self, encoded: Float[Array, "b k e"], batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l v"]:
        """Returns the logits of the token after each of `decoder_input_tokens`."""
        segments = batch["decoder_segment_ids"]
        x = self.decoder(
            self.token_embedder(batch["decoder_input_tokens"]),
            causal_mask(segments.shape[1]) & segment_mask(segments, segments),
            encoded,
            segment_mask(segments, batch["encoder_segment_ids"]),
            dropout_rate=dropout_rate,
        )
        return self.decoder.logits(x, self.token_embedder)

    def __call__(
        self, batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l v"]:
        encoded = self.encode(batch, dropout_rate=dropout_rate)
        return self.decode(encoded, batch, dropout_rate=dropout_rate)


class DecoderOnly(nn.Module):
    """A language model from T5's decoder blocks: causal, or where `prefix_attention` is set with
    a prefix that is seen as a whole.

    Parameters:
        token_embedder/embedding, decoder/...
    """

    config: T5Config

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config)
        self.decoder = Decoder(self.config)

    def __call__(
        self, batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l v"]:
        segments = batch["decoder_segment_ids"]
        may_see = causal_mask(segments.shape[1])
        if self.config.prefix_attention and "decoder_causal_attention" in batch:
            may_see = may_see | prefix_mask(batch["decoder_causal_attention"])
        x = self.decoder(
            self.token_embedder(batch["decoder_input_tokens"]),
            may_see & segment_mask(segments, segments),
            None,
            None,
            dropout_rate=dropout_rate,
        )
        return self.decoder.logits(x, self.token_embedder)


Model = EncoderDecoder | DecoderOnly
