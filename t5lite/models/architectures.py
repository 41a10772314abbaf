"""Whole models, from a batch to logits: encoder-decoder, decoder-only and encoder-only.

`ModelApply` is the form in which losses call them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from t5lite.core.batches import Batch
from t5lite.core.lazy import by_name
from t5lite.core.numbers import Number
from t5lite.core.transitions import Transitions
from t5lite.models.cache import Cache, updated
from t5lite.models.classifier import NEXT_SENTENCE, POOLINGS, Classes, Classifier
from t5lite.models.config import T5Config
from t5lite.models.decoder import Decoder, logits_map, token_logits
from t5lite.models.embedding import Embedding, offsets_name
from t5lite.models.encoder import Encoder, encoder_output
from t5lite.models.experts import EXPERT_STATISTICS
from t5lite.models.initializers import ConstantInit, parameter
from t5lite.models.logits_transform import LogitsTransform
from t5lite.models.loss_parameters import WithLossParameters
from t5lite.models.model import Model
from t5lite.models.norms import Identity
from t5lite.models.positions import positions_in_examples
from t5lite.models.prompts import embedded_tokens, make_prompt
from t5lite.models.stack import LAYER_OUTPUTS, outputs_in_order


class WithDecoder(WithLossParameters):
    """What models with a decoder share: a `token_embedder`, a `decoder`, and logits of tokens."""

    config: T5Config

    has_decoder: ClassVar[bool] = True
    classes: ClassVar[Classes | None] = None

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits of the token that follows each of those that `x` was computed from."""
        self.init_loss_parameters()
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
        token_embedder/embedding, encoder/..., decoder/...; encoder_token_embedder/embedding with
        `separate_embeddings`, when token_embedder is the decoder's; prompt/... if an adapter adds
        one.
    """

    layout: ClassVar[str] = "encoder_decoder"
    has_encoder: ClassVar[bool] = True

    def setup(self) -> None:
        of_encoder = self.config.encoder_config()
        self.token_embedder = Embedding(self.config)
        self.encoder_token_embedder = None
        if self.config.separate_embeddings:
            self.encoder_token_embedder = Embedding(of_encoder)
        self.prompt = make_prompt(self.config)
        self.encoder = Encoder(of_encoder)
        self.decoder = Decoder(self.config)

    def encode(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b k e"]:
        """Returns the encoder's output for `encoder_input_tokens`."""
        embedding = self.encoder_token_embedder or self.token_embedder
        return encoder_output(self.encoder, embedding, batch, dropout_rate, self.prompt)

    def decode(
        self,
        encoded: Float[Array, "b k source_embed"],
        batch: Batch,
        *,
        dropout_rate: Number | None = None,
    ) -> Float[Array, "b l e"]:
        """Returns the decoder's output for `decoder_input_tokens`."""
        return self.decoder(
            embedded_tokens(self.token_embedder, batch, "decoder"),
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

    def embedded(self, batch: Batch) -> dict[str, Any]:
        """Returns the embedded tokens of both stacks, by the names of their offsets in a batch."""
        embedding = self.encoder_token_embedder or self.token_embedder
        return {
            offsets_name("encoder"): embedded_tokens(embedding, batch, "encoder", self.prompt),
            offsets_name("decoder"): embedded_tokens(self.token_embedder, batch, "decoder"),
        }

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
        token_embedder/embedding, decoder/...; prompt/... if an adapter adds one.
    """

    layout: ClassVar[str] = "decoder"
    has_encoder: ClassVar[bool] = False

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config)
        self.prompt = make_prompt(self.config)
        self.decoder = Decoder(self.config)

    def embedded(self, batch: Batch) -> dict[str, Any]:
        """Returns the embedded tokens, by the name of their offsets in a batch."""
        x = embedded_tokens(self.token_embedder, batch, "decoder", self.prompt)
        return {offsets_name("decoder"): x}

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
        if self.prompt is not None:
            every = updated(cache.segment_ids, segments, cache.length, axis=1)
            positions = positions_in_examples(every)
            x = self.prompt(
                x, jax.lax.dynamic_slice_in_dim(positions, cache.length, x.shape[1], axis=1)
            )
        return self.decoder.extend(x, segments, self._prefix(batch), cache)

    def hidden(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns the input of `logits` for the whole batch."""
        return self.decoder(
            embedded_tokens(self.token_embedder, batch, "decoder", self.prompt),
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


class EncoderOnly(WithLossParameters):
    """An encoder with logits for each of its tokens: of tokens (masked LM), or of classes.

    Parameters:
        token_embedder/embedding, encoder/...; prompt/... if an adapter adds one;
        logits_transform/... if there is one; for tokens,
        unless logits are tied, logits_dense/kernel [embed, vocab], and with `logits_bias`
        logits_bias [vocab], zeros, and with `next_sentence` next_sentence/..., as classifier/...;
        for classes classifier/..., see `Classifier`. Kernels are truncated normal with variance
        1 / embed.

    A batch may hold `encoder_token_types`, the type of each token, if the model has types.
    """

    config: T5Config
    classes: Classes | None = None

    layout: ClassVar[str] = "encoder"
    has_encoder: ClassVar[bool] = True
    has_decoder: ClassVar[bool] = False

    def setup(self) -> None:
        config = self.config
        self.token_embedder = Embedding(config)
        self.prompt = make_prompt(config)
        self.encoder = Encoder(config)
        self.logits_transform = LogitsTransform(config) if config.logits_transform else Identity()
        if self.classes is not None:
            self.classifier = Classifier(config, self.classes)
            return
        if config.next_sentence:
            self.next_sentence = Classifier(config, NEXT_SENTENCE)
        self.logits_dense = None
        if not config.tied_logits:
            self.logits_dense = logits_map(config, "logits_dense")
        self.logits_bias: Any = None
        if config.logits_bias:
            init = parameter(ConstantInit(0.0), ("vocab",))
            self.logits_bias = self.param("logits_bias", init, (config.vocab_size,))

    def encode(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns the encoder's output for `encoder_input_tokens`."""
        return encoder_output(self.encoder, self.token_embedder, batch, dropout_rate, self.prompt)

    def hidden(self, batch: Batch, *, dropout_rate: Number | None = None) -> Float[Array, "b l e"]:
        """Returns the input of `logits` for the whole batch."""
        x = self.encode(batch, dropout_rate=dropout_rate)
        if self.classes is None or self.classes.per_token:
            return x
        return POOLINGS[self.classes.pooling](x, batch["encoder_segment_ids"])

    def embedded(self, batch: Batch) -> dict[str, Any]:
        """Returns the embedded tokens, by the name of their offsets in a batch."""
        x = embedded_tokens(self.token_embedder, batch, "encoder", self.prompt)
        return {offsets_name("encoder"): x}

    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits at each position of `x`."""
        if self.is_initializing() and self.classes is None and self.config.next_sentence:
            self.pair_logits(x)
        self.init_loss_parameters()
        x = self.logits_transform(x)
        if self.classes is not None:
            logits: Float[Array, "b l v"] = self.classifier(x)
            return logits
        own = self.logits_dense
        return token_logits(self.config, x, self.token_embedder, own, self.logits_bias)

    def pair_logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l 2"]:
        """Returns the logits, at each position, of the second part of the inputs: next or not."""
        logits: Float[Array, "b l 2"] = self.next_sentence(x)
        return logits

    def transitions(self) -> Transitions:
        """Returns the scores of the classes of a chain."""
        return self.classifier.transition_scores()

    def __call__(
        self, batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l v"]:
        return self.logits(self.hidden(batch, dropout_rate=dropout_rate))


@dataclasses.dataclass(frozen=True)
class ModelApply:
    """The apply function of a model; see `losses.loss.Apply`.

    Args:
        dropout_rate: applied in calls that have a key; None compiles no dropout.
        frozen: other models of the run by name, each a `models.frozen.FrozenModel`.
    """

    model: Model
    dropout_rate: Number | None = None
    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> Float[Array, "b l v"]:
        """Returns the logits of the whole batch."""
        return self.logits(params, self.hidden(params, batch, key)[0])

    def hidden(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b l e"], dict[str, Float[Array, "layers b"]]]:
        """Returns the input of `logits`, and the statistics of experts of each layer and row."""
        x, statistics, _ = self._applied(params, batch, key, layers=False)
        return x, statistics

    def recorded(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[
        Float[Array, "b l e"], dict[str, Float[Array, "layers b"]], dict[str, Float[Array, "..."]]
    ]:
        """Returns what `hidden` does, and the outputs of all layers of each stack, by its name."""
        return self._applied(params, batch, key, layers=True)

    def _applied(
        self, params: Any, batch: Batch, key: Key[Array, ""] | None, *, layers: bool
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        has_experts = self.model.config.num_experts is not None
        wanted = {EXPERT_STATISTICS: has_experts, LAYER_OUTPUTS: layers}
        asked = [name for name, is_wanted in wanted.items() if is_wanted]
        result: Any = self.model.apply(
            {"params": params},
            batch,
            dropout_rate=None if key is None else self.dropout_rate,
            rngs=None if key is None else {"dropout": key},
            method="hidden",
            mutable=asked or False,
        )
        if not asked:
            return result, {}, {}
        hidden, collections = result
        statistics = _by_statistic(collections[EXPERT_STATISTICS]) if has_experts else {}
        return hidden, statistics, outputs_in_order(collections[LAYER_OUTPUTS]) if layers else {}

    def logits(self, params: Any, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        """Returns the logits of a part of what `hidden` returned."""
        logits: Any = self.model.apply({"params": params}, x, method="logits")
        return logits

    def head(self, params: Any, name: str, *arguments: Any) -> Any:
        """Returns the result of another method of the model, such as `transitions` of a chain."""
        return self.model.apply({"params": params}, *arguments, method=name)

    def embedded(self, params: Any, batch: Batch) -> dict[str, Float[Array, "b l e"]]:
        """Returns the embedded tokens of each stack, by the names of their offsets in a batch."""
        embedded: Any = self.model.apply({"params": params}, batch, method="embedded")
        return embedded


def _by_statistic(tree: Any) -> dict[str, Float[Array, "layers b"]]:
    """Returns what all stacks of layers sowed, by the name of the statistic."""
    found: dict[str, list[Any]] = {}
    for path, leaf in by_name(tree).items():
        # Flax keeps what a module sows in a tuple: .../mlp/load_balance/0.
        found.setdefault(path.split("/")[-2], []).append(leaf)
    return {name: jnp.concatenate(leaves) for name, leaves in found.items()}
