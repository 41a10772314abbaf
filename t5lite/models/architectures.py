"""Whole models: from a batch to logits. What a batch holds is named in `data.features`."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from t5lite.core.batches import Batch
from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.core.numbers import Number
from t5lite.models.cache import Cache
from t5lite.models.config import T5Config
from t5lite.models.decoder import Decoder
from t5lite.models.encoder import Encoder
from t5lite.models.initializers import Constant, Parameter, Scaled, parameter
from t5lite.models.layers import Embedding, Linear
from t5lite.models.masks import causal_mask, prefix_mask, segment_mask


class WithDecoder(nn.Module):
    """What models whose decoder writes have in common.

    They have a `token_embedder` and a `decoder`.
    """

    config: T5Config

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits of the token after each of those that `x` was made of."""
        return self.decoder.logits(x, self.token_embedder)

    def extend_by_one(
        self,
        tokens: Int[Array, "b hypotheses"],
        may_see: Bool[Array, "b hypotheses capacity"],
        place: Int[Array, ""],
        cache: Cache,
    ) -> tuple[Float[Array, "b hypotheses v"], Cache]:
        """Reads one token of each hypothesis; see `Decoder.extend_by_one`."""
        x, cache = self.decoder.extend_by_one(self.token_embedder(tokens), may_see, place, cache)
        return self.decoder.logits(x, self.token_embedder), cache


class EncoderDecoder(WithDecoder):
    """T5: an encoder that sees all of the input, and a decoder that writes the target.

    Parameters:
        token_embedder/embedding, encoder/..., decoder/...
    """

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
        segments = batch["decoder_segment_ids"]
        return self.decoder(
            self.token_embedder(batch["decoder_input_tokens"]),
            causal_mask(segments.shape[1]) & segment_mask(segments, segments),
            encoded,
            segment_mask(segments, batch["encoder_segment_ids"]),
            segments > 0,
            dropout_rate=dropout_rate,
        )

    def hidden(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns what `logits` takes, for the whole batch."""
        encoded = self.encode(batch, dropout_rate=dropout_rate)
        return self.decode(encoded, batch, dropout_rate=dropout_rate)

    def start(self, batch: Batch, *, capacity: int) -> Cache:
        """Encodes, and returns the cache of a decoder that will read up to `capacity` tokens."""
        encoded, segments = self.encode(batch), batch["encoder_segment_ids"]
        return self.decoder.start(segments.shape[0], capacity, encoded, segments)

    def extend(self, batch: Batch, cache: Cache) -> tuple[Float[Array, "b l e"], Cache]:
        """Reads `decoder_input_tokens` behind those of the cache, and returns what `logits` takes.

        Of tokens beyond the capacity of the cache it is NaN.
        """
        x = self.token_embedder(batch["decoder_input_tokens"])
        return self.decoder.extend(x, batch["decoder_segment_ids"], None, cache)

    def __call__(
        self, batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l v"]:
        return self.logits(self.hidden(batch, dropout_rate=dropout_rate))


class DecoderOnly(WithDecoder):
    """A language model from T5's decoder blocks: causal, or where `prefix_attention` is set with
    a prefix that is seen as a whole.

    Parameters:
        token_embedder/embedding, decoder/...
    """

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config)
        self.decoder = Decoder(self.config)

    def start(self, batch: Batch, *, capacity: int) -> Cache:
        """Returns the cache for as many rows as `decoder_input_tokens` has, before any token."""
        rows = batch["decoder_input_tokens"].shape[0]
        return self.decoder.start(rows, capacity, None, None)

    def extend(self, batch: Batch, cache: Cache) -> tuple[Float[Array, "b l e"], Cache]:
        """Reads `decoder_input_tokens` behind those of the cache, and returns what `logits` takes.

        A prefix that is seen as a whole has to be read at once. Of tokens beyond the capacity of
        the cache it is NaN.
        """
        x = self.token_embedder(batch["decoder_input_tokens"])
        segments = batch["decoder_segment_ids"]
        return self.decoder.extend(x, segments, self._prefix(batch), cache)

    def hidden(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns what `logits` takes, for the whole batch."""
        segments = batch["decoder_segment_ids"]
        may_see = causal_mask(segments.shape[1])
        if (prefix := self._prefix(batch)) is not None:
            may_see = may_see | prefix
        return self.decoder(
            self.token_embedder(batch["decoder_input_tokens"]),
            may_see & segment_mask(segments, segments),
            None,
            None,
            segments > 0,
            dropout_rate=dropout_rate,
        )

    def __call__(
        self, batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l v"]:
        return self.logits(self.hidden(batch, dropout_rate=dropout_rate))

    def _prefix(self, batch: Batch) -> Bool[Array, "b 1 l l"] | None:
        if self.config.prefix_attention and "decoder_causal_attention" in batch:
            return prefix_mask(batch["decoder_causal_attention"])
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """What an encoder decides between, in the place of tokens.

    Args:
        count: of classes.
        per_token: whether every token gets a class (tagging), or the mean over an example's
            tokens gets one (classification), which then stands at each of them.
    """

    count: int
    per_token: bool

    def __post_init__(self) -> None:
        if self.count < 2:
            raise UserError(f"Classes.count must be at least 2, got {self.count}")


class EncoderOnly(nn.Module):
    """T5's encoder with logits for each of its tokens: of tokens (masked LM), or of classes.

    Parameters:
        token_embedder/embedding, encoder/...; for tokens, unless logits are tied,
        logits_dense/kernel [embed, vocab]; for classes classifier/kernel [embed, classes] and
        classifier/bias [classes], zeros. Kernels are truncated normal with variance 1 / embed.
    """

    config: T5Config
    classes: Classes | None = None

    def setup(self) -> None:
        config, init = self.config, Scaled(1.0, "truncated_normal")
        self.token_embedder = Embedding(config)
        self.encoder = Encoder(config)
        if self.classes is not None:
            self.classifier = Classifier(config, self.classes.count)
        elif not config.tied_logits:
            shape = (config.embed_dim, config.vocab_size)
            self.logits_dense = Linear("ble,ev->blv", shape, ("embed", "vocab"), init)

    def encode(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns the encoder's output for `encoder_input_tokens`."""
        x = self.token_embedder(batch["encoder_input_tokens"])
        return self.encoder(x, batch["encoder_segment_ids"], dropout_rate=dropout_rate)

    def hidden(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns what `logits` takes, for the whole batch."""
        x = self.encode(batch, dropout_rate=dropout_rate)
        if self.classes is None or self.classes.per_token:
            return x
        return mean_of_segments(x, batch["encoder_segment_ids"])

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits of each place that `x` was made of."""
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


class Classifier(nn.Module):
    """An affine map to the logits of classes, in float32.

    Parameters:
        kernel [embed, classes], truncated normal with variance 1 / embed; bias [classes], zeros.
    """

    config: T5Config
    count: int

    @nn.compact
    def __call__(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        init = parameter(Scaled(1.0, "truncated_normal"), ("embed", "classes"))
        kernel = self.param("kernel", init, (self.config.embed_dim, self.count))
        bias: Any = self.param("bias", parameter(Constant(0.0), ("classes",)), (self.count,))
        return jnp.einsum("ble,ev->blv", x.astype(jnp.float32), kernel) + bias[None, None]


def mean_of_segments(
    x: Float[Array, "b l e"], segment_ids: Int[Array, "b l"]
) -> Float[Array, "b l e"]:
    """Returns at each token the mean over the tokens of its example; 0 for padding.

    >>> x = jnp.array([[[1.0], [3.0], [5.0], [7.0]]])
    >>> mean_of_segments(x, jnp.array([[1, 1, 2, 0]]))[0, :, 0].tolist()
    [2.0, 2.0, 5.0, 0.0]
    """
    count = segment_ids.shape[1] + 1

    def of_row(row: Float[Array, "l e"], ids: Int[Array, "l"]) -> Float[Array, "l e"]:
        is_token = (ids > 0).astype(jnp.float32)[:, None]
        sums = jax.ops.segment_sum(row.astype(jnp.float32) * is_token, ids, count)
        tokens = jax.ops.segment_sum(is_token, ids, count)
        return (sums / jnp.maximum(tokens, 1.0))[ids]

    return jax.vmap(of_row)(x, segment_ids).astype(x.dtype)


Model = EncoderDecoder | DecoderOnly | EncoderOnly


def init(model: Model, key: Key[Array, ""]) -> Any:
    """Returns new parameters, each in a `Parameter` that names its axes."""
    # Parameters depend on no length; the shortest row in which all are used compiles fastest.
    has_global = model.config.encoder_attention == "transient_global"
    row = jnp.ones((1, model.config.global_block_size if has_global else 1), jnp.int32)
    names = ("input_tokens", "segment_ids")
    batch = {f"{side}_{name}": row for side in ("encoder", "decoder") for name in names}
    return model.init(key, batch)["params"]


def parameters(model: Model) -> dict[str, Parameter]:
    """Returns the model's parameters by name, their shapes in the place of values."""
    boxed = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    return by_name(boxed, is_leaf=lambda x: isinstance(x, Parameter))
