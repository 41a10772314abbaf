"""Whole models, from a batch to logits: encoder-decoder, decoder-only and encoder-only.

`ModelApply` is the form in which losses call them.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from t5lite.core.batches import Batch
from t5lite.core.lazy import by_name
from t5lite.core.numbers import Number
from t5lite.models.cache import Cache
from t5lite.models.classifier import Classes, Classifier, mean_of_segments
from t5lite.models.config import T5Config
from t5lite.models.decoder import Decoder, logits_map
from t5lite.models.embedding import Embedding
from t5lite.models.encoder import Encoder
from t5lite.models.experts import EXPERT_STATISTICS
from t5lite.models.model import Model


class WithDecoder(nn.Module):
    """What models with a decoder share: a `token_embedder`, a `decoder`, and logits of tokens."""

    config: T5Config

    has_decoder: ClassVar[bool] = True
    classes: ClassVar[Classes | None] = None

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits of the token that follows each of those that `x` was computed from."""
        return self.decoder.logits(x, self.token_embedder)

    def extend_by_one(
        self,
        tokens: Int[Array, "b hypotheses"],
        visible: Bool[Array, "b hypotheses capacity"],
        position: Int[Array, ""],
        cache: Cache,
    ) -> tuple[Float[Array, "b hypotheses v"], Cache]:
        """Processes one token of each hypothesis; see `Decoder.extend_by_one`."""
        x, cache = self.decoder.extend_by_one(self.token_embedder(tokens), visible, position, cache)
        return self.decoder.logits(x, self.token_embedder), cache


class EncoderDecoder(WithDecoder):
    """T5: an encoder that sees all of the input, and a decoder that generates the target.

    Parameters:
        token_embedder/embedding, encoder/..., decoder/...
    """

    layout: ClassVar[str] = "encoder_decoder"
    has_encoder: ClassVar[bool] = True

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b k e"]:
        """Returns the encoder's output for `encoder_input_tokens`."""
        x = self.token_embedder(batch["encoder_input_tokens"])
        return self.encoder(x, batch["encoder_segment_ids"], dropout_rate=dropout_rate)

    def decode(
        self, encoded: Float[Array, "b k e"], batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l e"]:
        """Returns the decoder's output for `decoder_input_tokens`."""
        return self.decoder(
            self.token_embedder(batch["decoder_input_tokens"]),
            batch["decoder_segment_ids"],
            None,
            encoded,
            batch["encoder_segment_ids"],
            dropout_rate=dropout_rate,
        )

    def hidden(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns the input of `logits` for the whole batch."""
        encoded = self.encode(batch, dropout_rate=dropout_rate)
        return self.decode(encoded, batch, dropout_rate=dropout_rate)

    def start(self, batch: Batch, *, capacity: int) -> Cache:
        """Encodes, and returns the cache of a decoder for up to `capacity` tokens."""
        encoded = self.encode(batch)
        segments = batch["encoder_segment_ids"]
        return self.decoder.start(segments.shape[0], capacity, encoded, segments)

    def extend(self, batch: Batch, cache: Cache) -> tuple[Float[Array, "b l e"], Cache]:
        """Processes `decoder_input_tokens` after those of the cache; returns the input of `logits`.

        It is NaN for tokens beyond the capacity of the cache.
        """
        x = self.token_embedder(batch["decoder_input_tokens"])
        return self.decoder.extend(x, batch["decoder_segment_ids"], None, cache)

    def __call__(
        self, batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l v"]:
        return self.logits(self.hidden(batch, dropout_rate=dropout_rate))


class DecoderOnly(WithDecoder):
    """A language model from T5's decoder layers: causal, or with `prefix_attention` a prefix
    language model.

    Parameters:
        token_embedder/embedding, decoder/...
    """

    layout: ClassVar[str] = "decoder"
    has_encoder: ClassVar[bool] = False

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config)
        self.decoder = Decoder(self.config)

    def start(self, batch: Batch, *, capacity: int) -> Cache:
        """Returns the cache for the rows of `decoder_input_tokens`, before any token."""
        rows = batch["decoder_input_tokens"].shape[0]
        return self.decoder.start(rows, capacity, None, None)

    def extend(self, batch: Batch, cache: Cache) -> tuple[Float[Array, "b l e"], Cache]:
        """Processes `decoder_input_tokens` after those of the cache; returns the input of `logits`.

        A prefix has to be processed at once. The result is NaN for tokens beyond the capacity of
        the cache.
        """
        x = self.token_embedder(batch["decoder_input_tokens"])
        segments = batch["decoder_segment_ids"]
        return self.decoder.extend(x, segments, self._prefix(batch), cache)

    def hidden(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns the input of `logits` for the whole batch."""
        return self.decoder(
            self.token_embedder(batch["decoder_input_tokens"]),
            batch["decoder_segment_ids"],
            self._prefix(batch),
            None,
            None,
            dropout_rate=dropout_rate,
        )

    def __call__(
        self, batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l v"]:
        return self.logits(self.hidden(batch, dropout_rate=dropout_rate))

    def _prefix(self, batch: Batch) -> Int[Array, "b l"] | None:
        if self.config.prefix_attention and "decoder_causal_attention" in batch:
            prefix: Int[Array, "b l"] = batch["decoder_causal_attention"]
            return prefix
        return None


class EncoderOnly(nn.Module):
    """T5's encoder with logits for each of its tokens: of tokens (masked LM), or of classes.

    Parameters:
        token_embedder/embedding, encoder/...; for tokens, unless logits are tied,
        logits_dense/kernel [embed, vocab]; for classes classifier/kernel [embed, classes] and
        classifier/bias [classes], zeros. Kernels are truncated normal with variance 1 / embed.
    """

    config: T5Config
    classes: Classes | None = None

    layout: ClassVar[str] = "encoder"
    has_encoder: ClassVar[bool] = True
    has_decoder: ClassVar[bool] = False

    def setup(self) -> None:
        config = self.config
        self.token_embedder = Embedding(config)
        self.encoder = Encoder(config)
        if self.classes is not None:
            self.classifier = Classifier(config, self.classes.count)
        elif not config.tied_logits:
            self.logits_dense = logits_map(config, "logits_dense")

    def encode(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns the encoder's output for `encoder_input_tokens`."""
        x = self.token_embedder(batch["encoder_input_tokens"])
        return self.encoder(x, batch["encoder_segment_ids"], dropout_rate=dropout_rate)

    def hidden(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns the input of `logits` for the whole batch."""
        x = self.encode(batch, dropout_rate=dropout_rate)
        if self.classes is None or self.classes.per_token:
            return x
        return mean_of_segments(x, batch["encoder_segment_ids"])

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits at each position of `x`."""
        if self.classes is not None:
            return self.classifier(x)
        tied = self.config.tied_logits
        scores = self.token_embedder.logits if tied else self.logits_dense
        logits: Any = scores(x.astype(jnp.float32))
        return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))

    def __call__(
        self, batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l v"]:
        return self.logits(self.hidden(batch, dropout_rate=dropout_rate))


@dataclasses.dataclass(frozen=True)
class ModelApply:
    """The apply function of a model; see `losses.loss.Apply`.

    Args:
        dropout_rate: applied in calls that have a key; None compiles no dropout.
    """

    model: Model
    dropout_rate: Number | None = None

    def __call__(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> Float[Array, "b l v"]:
        """Returns the logits of the whole batch."""
        return self.logits(params, self.hidden(params, batch, key)[0])

    def hidden(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b l e"], dict[str, Float[Array, "layers b"]]]:
        """Returns the input of `logits`, and the statistics of experts of each layer and row."""
        has_experts = self.model.config.num_experts is not None
        result: Any = self.model.apply(
            {"params": params},
            batch,
            dropout_rate=None if key is None else self.dropout_rate,
            rngs=None if key is None else {"dropout": key},
            method="hidden",
            mutable=[EXPERT_STATISTICS] if has_experts else False,
        )
        if not has_experts:
            return result, {}
        hidden, collections = result
        return hidden, _by_statistic(collections[EXPERT_STATISTICS])

    def logits(self, params: Any, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits of a part of what `hidden` returned."""
        logits: Any = self.model.apply({"params": params}, x, method="logits")
        return logits


def _by_statistic(tree: Any) -> dict[str, Float[Array, "layers b"]]:
    """Returns what all stacks of layers sowed, by the name of the statistic."""
    found: dict[str, list[Any]] = {}
    for path, leaf in by_name(tree).items():
        # Flax keeps what a module sows in a tuple: .../mlp/load_balance/0.
        found.setdefault(path.split("/")[-2], []).append(leaf)
    return {name: jnp.concatenate(leaves) for name, leaves in found.items()}
