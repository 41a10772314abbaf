"""FLOPs of one training step by the formula, matrix products only, nothing counted twice.

Recomputed activations are not counted. Attention is counted over all keys of its window, with no
credit for causal masks, and keys and values of cross-attention are counted over the input. Of
experts, those that a token goes to and the router are counted. Adapters are not counted.
"""

from collections.abc import Mapping, Sequence

from t5lite.models.config import T5Config
from t5lite.models.masks import Window
from t5lite.models.model import Model
from t5lite.models.stack import window_pattern


def forward_flops(model: Model, lengths: Mapping[str, int]) -> int:
    """Returns the floating-point operations of one sequence forward, in FLOPs.

    Args:
        lengths: of a row, in tokens, by feature.

    >>> from t5lite.models.architectures import EncoderDecoder
    >>> base = EncoderDecoder(T5Config(
    ...     vocab_size=32128, embed_dim=768, num_heads=12, head_dim=64, mlp_dim=2048,
    ...     num_encoder_layers=12, num_decoder_layers=12))
    >>> lengths = {"encoder_input_tokens": 512, "decoder_input_tokens": 114}
    >>> round(3 * forward_flops(base, lengths) / 1e12, 3)
    0.426
    """
    config = model.config
    inputs = lengths["encoder_input_tokens"] if model.has_encoder else 0
    targets = lengths["decoder_input_tokens"] if model.has_decoder else 0
    encoder = sum(
        _encoder_attention(config, inputs, window) + _feed_forward(config, inputs)
        for window in _windows(config.encoder_windows, config.num_encoder_layers)
    )
    cross = _attention(config, targets, inputs) if model.has_encoder else 0
    decoder = sum(
        _attention(config, targets, targets, _seen(targets, window and (window[0], 0)))
        + cross
        + _feed_forward(config, targets)
        for window in _windows(config.decoder_windows, config.num_decoder_layers)
    )
    outputs = config.vocab_size if model.classes is None else model.classes.count
    return encoder + decoder + 2 * config.embed_dim * outputs * (targets or inputs)


def train_flops(model: Model, lengths: Mapping[str, int]) -> int:
    """Returns the FLOPs of one sequence forward and backward: three times the forward ones."""
    return 3 * forward_flops(model, lengths)


def _attention(config: T5Config, queries: int, keys: int, seen: int | None = None) -> int:
    """Of one layer; `seen` is the number of keys that each query is compared with."""
    inner = config.num_heads * config.head_dim
    kv_inner = config.kv_heads * config.head_dim
    maps = 4 * config.embed_dim * (inner * queries + kv_inner * keys)
    return maps + 4 * queries * (keys if seen is None else seen) * inner


def _windows(windows: Sequence[Window | None], num_layers: int) -> list[Window | None]:
    """Returns the window of each layer."""
    pattern = window_pattern(windows, num_layers)
    return [pattern.windows[kind] for kind in pattern.kinds]


def _seen(tokens: int, window: Window | None) -> int:
    """Returns how many keys of a sequence a query is compared with, both sides of it counted."""
    return tokens if window is None else min(tokens, sum(window) + 1)


def _encoder_attention(config: T5Config, tokens: int, window: Window | None) -> int:
    if config.encoder_attention == "full":
        return _attention(config, tokens, tokens, _seen(tokens, window))
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
