"""Classes from a decoder that reads the inputs again, as in `T5ForSequenceClassification`."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5lite.core.batches import Batch
from t5lite.core.numbers import Number
from t5lite.core.transitions import Transitions
from t5lite.models.classifier import POOLINGS, Classes, Classifier
from t5lite.models.config import T5Config
from t5lite.models.decoder import Decoder
from t5lite.models.embedding import Embedding, offsets_name
from t5lite.models.encoder import Encoder, encoder_output
from t5lite.models.loss_parameters import WithLossParameters
from t5lite.models.prompts import embedded_tokens


class EncoderDecoderClassifier(WithLossParameters):
    """An encoder-decoder whose decoder reads the inputs, shifted by one token, and has no targets.

    The first input of the decoder is `T5Config.start_token`, so its output at a token depends on
    the tokens before it and, through the encoder, on all of them.

    Parameters:
        token_embedder/embedding, encoder/..., decoder/..., as in `EncoderDecoder` without logits of
        tokens; classifier/..., see `Classifier`.
    """

    config: T5Config
    classes: Classes

    layout: ClassVar[str] = "encoder"
    has_encoder: ClassVar[bool] = True
    has_decoder: ClassVar[bool] = False

    def setup(self) -> None:
        of_encoder = self.config.encoder_config()
        self.token_embedder = Embedding(self.config)
        self.encoder_token_embedder = None
        if self.config.separate_embeddings:
            self.encoder_token_embedder = Embedding(of_encoder)
        self.encoder = Encoder(of_encoder)
        self.decoder = Decoder(self.config)
        self.classifier = Classifier(self.config, self.classes)

    def encode(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b k e"]:
        """Returns the encoder's output for `encoder_input_tokens`."""
        embedding = self.encoder_token_embedder or self.token_embedder
        return encoder_output(self.encoder, embedding, batch, dropout_rate)

    def hidden(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns the input of `logits` for the whole batch."""
        segments = batch["encoder_segment_ids"]
        start = self.config.start_token
        x = self.decoder(
            self.token_embedder(shifted(batch["encoder_input_tokens"], segments, start)),
            segments,
            None,
            self.encode(batch, dropout_rate=dropout_rate),
            segments,
            dropout_rate=dropout_rate,
        )
        return x if self.classes.per_token else POOLINGS[self.classes.pooling](x, segments)

    def embedded(self, batch: Batch) -> dict[str, Any]:
        """Returns the encoder's embedded tokens, by the name of their offsets in a batch."""
        embedding = self.encoder_token_embedder or self.token_embedder
        return {offsets_name("encoder"): embedded_tokens(embedding, batch, "encoder")}

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits of classes at each position of `x`."""
        self.init_loss_parameters()
        logits: Float[Array, "b l v"] = self.classifier(x)
        return logits

    def transitions(self) -> Transitions:
        """Returns the scores of the classes of a chain."""
        return self.classifier.transition_scores()

    def __call__(
        self, batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l v"]:
        return self.logits(self.hidden(batch, dropout_rate=dropout_rate))


def shifted(
    tokens: Int[Array, "b l"], segment_ids: Int[Array, "b l"], start: int
) -> Int[Array, "b l"]:
    """Returns the token before each token of an example, `start` before the first.

    >>> tokens, segments = jnp.array([[5, 6, 7, 8, 9]]), jnp.array([[1, 1, 1, 2, 2]])
    >>> shifted(tokens, segments, 0)[0].tolist()
    [0, 5, 6, 0, 8]
    """
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    is_first = segment_ids != jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(is_first, start, before)
