"""A decoder-only model adapted into an encoder-decoder: its configuration, and from which parameter
each of its parameters comes.

Source: Zhang et al., "Encoder-Decoder Gemma" (T5Gemma, arXiv 2504.06225) for the form with an
embedding for each stack and cross-attention; T5Gemma 2 (arXiv 2512.14856) for the merged one.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray, by_name
from t5lite.core.streams import stream
from t5lite.interop.adapted_bias import mirrored_bias
from t5lite.interop.foreign import Foreign
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.config import T5Config
from t5lite.models.config_fields import ENCODER_FIELDS
from t5lite.models.description import FREE
from t5lite.models.model import Model, init, parameters

SEPARATE = "encoder_decoder"
MERGED = "merged_encoder_decoder"

# Fields in which the checkpoints of a pair may differ, because only one stack has them, each stack
# has its own, or they belong to a run.
_OWN_FIELDS = {
    *ENCODER_FIELDS,
    *FREE,
    "num_decoder_layers",
    "decoder_windows",
    "prefix_attention",
    "tied_logits",
    "scale_tied_logits",
    "logits_soft_cap",
    "start_token",
} - {"vocab_size"}

_CROSS_ATTENTION = "decoder/layers/encoder_decoder_attention/"
# Patterns of the parameters of an adapted model, the checkpoint that each comes from, and its name
# there. The first match applies.
_SOURCES = (
    (r"encoder_token_embedder/(.*)", "encoder", r"token_embedder/\1"),
    (r"encoder/encoder_norm/(.*)", "encoder", r"decoder/decoder_norm/\1"),
    (r"encoder/layers/attention/(.*)", "encoder", r"decoder/layers/self_attention/\1"),
    (
        r"encoder/layers/(pre|post)_attention_layer_norm/(.*)",
        "encoder",
        r"decoder/layers/\1_self_attention_layer_norm/\2",
    ),
    (r"encoder/(.*)", "encoder", r"decoder/\1"),
    (_CROSS_ATTENTION + "(.*)", "decoder", r"decoder/layers/self_attention/\1"),
    (
        r"decoder/layers/(pre|post)_cross_attention_layer_norm/(.*)",
        "decoder",
        r"decoder/layers/\1_self_attention_layer_norm/\2",
    ),
    (r"(.*)", "decoder", r"\1"),
)


class SourceParameter(NamedTuple):
    """Where a parameter of an adapted model comes from.

    Args:
        checkpoint: "encoder" or "decoder", by the stack that is made from it.
        name: of the parameter there.
    """

    checkpoint: str
    name: str


def adapt(
    decoder: Foreign,
    encoder: Foreign | None = None,
    *,
    form: str = SEPARATE,
    cross_positions: str = "none",
    seed: int = 0,
) -> Foreign:
    """Returns the encoder-decoder made from one decoder-only checkpoint, or from two.

    Args:
        decoder: of the decoder, and without `encoder` of both stacks.
        encoder: of the encoder, if it has another one.
        form: `SEPARATE`: each stack has an embedding, and the decoder cross-attention that starts
            as its self-attention; or `MERGED`: both share one embedding, and the decoder's
            self-attention reads the encoder's output too, which needs no new parameters.
        cross_positions: of the model, as in `T5Config`.
        seed: of the maps of cross-attention, which are initialized as `train.seed` would if the
            encoder has another width than the decoder.

    Raises:
        UserError: if a model is not decoder-only, or two cannot be paired, with both values.
    """
    if encoder is not None and form == MERGED:
        raise UserError(
            f"--adapt={MERGED} makes both stacks from --input, whose embedding they share, got "
            f"--adapt_encoder; use --adapt={SEPARATE}"
        )
    sources = {"decoder": decoder, "encoder": decoder if encoder is None else encoder}
    model = adapted_model(decoder.model, sources["encoder"].model, form=form)
    model = EncoderDecoder(dataclasses.replace(model.config, cross_positions=cross_positions))
    shapes = {name: tuple(box.value.shape) for name, box in parameters(model).items()}
    given = {stack: foreign.params for stack, foreign in sources.items()}
    return Foreign(
        model=model,
        params=adapted_params(model, shapes, given, seed=seed),
        vocabulary=_vocabulary(decoder, encoder),
        remarks=(
            *decoder.remarks,
            *(() if encoder is None else encoder.remarks),
            *_remarks(model.config, sources, seed=seed),
        ),
    )


def adapted_model(decoder: Model, encoder: Model, *, form: str) -> EncoderDecoder:
    """Returns the model of a decoder and an encoder made from these decoder-only models.

    Raises:
        UserError: if one is of another kind, or a field that both stacks share differs.
    """
    for flag, model in (("--input", decoder), ("--adapt_encoder", encoder)):
        if model.has_encoder or not model.has_decoder:
            raise UserError(
                f"--adapt={form}: {flag} must be a decoder-only model, got {type(model).__name__}"
            )
        if model.config.adapters:
            raise UserError(
                f"--adapt={form}: T5Config.adapters of {flag} must be empty, got "
                f"{list(model.config.adapters)}; adapt the model that they were added to"
            )
    ours = decoder.config
    theirs = encoder.config
    for field in dataclasses.fields(T5Config):
        mine, other = (getattr(config, field.name) for config in (ours, theirs))
        if field.name not in _OWN_FIELDS and mine != other:
            raise UserError(
                f"--adapt={form} needs the same T5Config.{field.name} in --input and "
                f"--adapt_encoder, got {mine!r} and {other!r}; choose models of one family"
            )
    resolved = {name: getattr(theirs, name) for name in ENCODER_FIELDS}
    resolved["num_kv_heads"] = theirs.kv_heads
    usual = {name: getattr(ours, name) for name in ENCODER_FIELDS}
    usual["num_kv_heads"] = ours.num_kv_heads or theirs.num_heads
    sizes = {f"encoder_{n}": size for n, size in resolved.items() if size != usual[n]}
    config = dataclasses.replace(
        ours,
        num_encoder_layers=theirs.num_decoder_layers,
        encoder_windows=encoder_windows(theirs.decoder_windows, form=form),
        # Nothing is to the right of a token without a prefix.
        decoder_windows=tuple(pair and (pair[0], 0) for pair in ours.decoder_windows),
        prefix_attention=False,
        separate_embeddings=form == SEPARATE,
        merged_attention=form == MERGED,
        **sizes,
    )
    return EncoderDecoder(config)


def encoder_windows(windows: tuple[Any, ...], *, form: str) -> tuple[Any, ...]:
    """Returns the windows of an encoder made from a decoder with these, as pairs (left, right).

    With w the tokens that a decoder's token sees, itself included: w to each side, or in the merged
    form together as many as the decoder's.

    >>> encoder_windows(((4095, 0), None), form=SEPARATE)
    ((4096, 4096), None)
    >>> encoder_windows(((511, 0),), form=MERGED)
    ((255, 256),)

    Source: huggingface/transformers@v5.24:src/transformers/models/t5gemma/modeling_t5gemma.py and
    models/t5gemma2/modeling_t5gemma2.py, the masks of the encoders.
    """

    def of_layer(window: tuple[int, int] | None) -> tuple[int, int] | None:
        if window is None:
            return None
        seen = window[0] + 1
        return (seen, seen) if form == SEPARATE else ((seen + 1) // 2 - 1, seen // 2)

    return tuple(map(of_layer, windows))


def source_of(name: str) -> SourceParameter:
    """Returns where a parameter of an adapted model comes from, if it is not initialized.

    >>> source_of("encoder/layers/attention/query/kernel")
    SourceParameter(checkpoint='encoder', name='decoder/layers/self_attention/query/kernel')
    >>> source_of("decoder/layers/mlp/wi_0/kernel")
    SourceParameter(checkpoint='decoder', name='decoder/layers/mlp/wi_0/kernel')
    """
    for pattern, checkpoint, theirs in _SOURCES:
        if match := re.fullmatch(pattern, name):
            return SourceParameter(checkpoint, match.expand(theirs))
    raise AssertionError(f"no pattern matches {name}")


def is_fresh(name: str, config: T5Config) -> bool:
    """Returns whether a parameter of an adapted model is initialized.

    The maps of cross-attention are if the encoder's width differs from the decoder's: its keys and
    values do not fit those of self-attention, to which its queries and outputs belong.
    """
    other_width = config.encoder_embed_dim not in (None, config.embed_dim)
    return other_width and name.startswith(_CROSS_ATTENTION)


def adapted_params(
    model: EncoderDecoder,
    shapes: Mapping[str, tuple[int, ...]],
    given: Mapping[str, Mapping[str, LazyArray]],
    *,
    seed: int,
) -> dict[str, LazyArray]:
    """Returns the parameters of an adapted model; each is made when it is loaded.

    Args:
        shapes: of its parameters.
        given: the parameters of the checkpoint of each stack.
        seed: of those that are initialized.
    """
    params = {}
    for name, shape in shapes.items():
        source = source_of(name)
        theirs = given[source.checkpoint][source.name]
        if is_fresh(name, model.config):
            params[name] = _initialized(model, name, shape, theirs.dtype, seed)
            continue
        assert theirs.shape == shape, (name, shape, source, theirs.shape)
        is_bias = name.startswith("encoder/") and name.endswith("relpos_bias/rel_embedding")
        params[name] = mirrored_bias(theirs, model.config) if is_bias else theirs
    return params


def _initialized(
    model: EncoderDecoder, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], seed: int
) -> LazyArray:
    """Returns a parameter as a run with this seed initializes it."""

    def load() -> np.ndarray:
        # Compiled with one result, which leaves all other parameters out.
        made = jax.jit(
            lambda key: by_name(nn.unbox(init(model, stream(key, "init"))))[name].astype(dtype)
        )
        return np.asarray(made(jax.random.key(seed)))

    return LazyArray(shape, dtype, load)


def _vocabulary(decoder: Foreign, encoder: Foreign | None) -> Any:
    ours = decoder.vocabulary
    theirs = None if encoder is None else encoder.vocabulary
    if ours is not None and theirs is not None and ours.fingerprint != theirs.fingerprint:
        raise UserError(
            "--adapt needs the same vocabulary in --input and --adapt_encoder, got "
            f"{ours.fingerprint} and {theirs.fingerprint}; choose models of one family"
        )
    return ours or theirs


def _remarks(config: T5Config, sources: Mapping[str, Foreign], *, seed: int) -> list[str]:
    theirs = sources["encoder"].model.config
    remarks = []
    if is_fresh(_CROSS_ATTENTION, config):
        remarks.append(
            f"cross-attention is initialized with convert.seed={seed}: the encoder's width is "
            f"{config.encoder_embed_dim} and the decoder's {config.embed_dim}; train it first, "
            f"train.train_first = @TrainFirst(), TrainFirst.parameters = ['{_CROSS_ATTENTION}.*']"
        )
    if config.positions != "rotary":
        remarks.append(
            "the encoder's relative biases are the decoder's of the same distance, to both sides"
        )
    if config.encoder_windows:
        remarks.append(f"the encoder's windows are {config.encoder_windows!r}, (left, right)")
    if theirs.prefix_attention or sources["decoder"].model.config.prefix_attention:
        remarks.append("T5Config.prefix_attention becomes False: the encoder reads the prefix")
    if sources["encoder"] is not sources["decoder"] and not theirs.tied_logits:
        remarks.append("the output layer of --adapt_encoder is not used")
    return remarks
