"""FLOPs of one training step by the formula, matrix products only, nothing counted twice.

Activations computed again in the backward pass are not counted, attention is counted in full
(no credit for causal masks), and keys and values of cross-attention are counted over the input.
Of experts those are counted that a token goes to, and the router.
"""

from collections.abc import Mapping

from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly, Model
from t5lite.models.config import T5Config


def forward_flops(model: Model, lengths: Mapping[str, int]) -> int:
    """Returns the floating-point operations of one sequence forward, in FLOPs.

    Args:
        lengths: of a row, in tokens, by the name of the feature.

    >>> base = EncoderDecoder(T5Config(
    ...     vocab_size=32128, embed_dim=768, num_heads=12, head_dim=64, mlp_dim=2048,
    ...     num_encoder_layers=12, num_decoder_layers=12))
    >>> lengths = {"encoder_input_tokens": 512, "decoder_input_tokens": 114}
    >>> round(3 * forward_flops(base, lengths) / 1e12, 3)
    0.426
    """
    config = model.config
    inputs = 0 if isinstance(model, DecoderOnly) else lengths["encoder_input_tokens"]
    targets = 0 if isinstance(model, EncoderOnly) else lengths["decoder_input_tokens"]
    decoder_layer = _attention(config, targets, targets) + _feed_forward(config, targets)
    if isinstance(model, EncoderDecoder):
        decoder_layer += _attention(config, targets, inputs)
    encoder_layer = _encoder_attention(config, inputs) + _feed_forward(config, inputs)
    outputs = config.vocab_size
    if isinstance(model, EncoderOnly) and model.classes is not None:
        outputs = model.classes.count
    return (
        config.num_encoder_layers * encoder_layer
        + config.num_decoder_layers * decoder_layer
        + 2 * config.embed_dim * outputs * (targets or inputs)
    )


def train_flops(model: Model, lengths: Mapping[str, int]) -> int:
    """Returns the FLOPs of one sequence forward and backward: three times the forward ones."""
    return 3 * forward_flops(model, lengths)


def _attention(config: T5Config, queries: int, keys: int, seen: int | None = None) -> int:
    """Of one layer; `seen` is how many of the keys each query is compared with."""
    inner = config.num_heads * config.head_dim
    kv_inner = config.kv_heads * config.head_dim
    maps = 4 * config.embed_dim * (inner * queries + kv_inner * keys)
    return maps + 4 * queries * (keys if seen is None else seen) * inner


def _encoder_attention(config: T5Config, tokens: int) -> int:
    if config.encoder_attention == "full":
        return _attention(config, tokens, tokens)
    has_global = config.encoder_attention == "transient_global"
    global_tokens = tokens // config.global_block_size if has_global else 0
    seen = 3 * (config.local_radius + 1) + global_tokens
    # The sums that make global tokens are a matrix product too.
    sums = 2 * tokens * global_tokens * config.embed_dim
    return _attention(config, tokens, tokens + global_tokens, seen) + sums


def _feed_forward(config: T5Config, tokens: int) -> int:
    one = 2 * (len(config.mlp_activations) + 1) * config.embed_dim * config.mlp_dim * tokens
    if config.num_experts is None:
        return one
    return config.experts_per_token * one + 2 * config.embed_dim * config.num_experts * tokens
