"""FLOPs of one training step by the formula, matrix products only, nothing counted twice.

Activations computed again in the backward pass are not counted, attention is counted in full
(no credit for causal masks), and keys and values of cross-attention are counted over the input.
"""

from t5lite.models.config import T5Config


def forward_flops(config: T5Config, inputs_length: int, targets_length: int) -> int:
    """Returns the floating-point operations of one sequence forward, in FLOPs.

    >>> base = T5Config(
    ...     vocab_size=32128, embed_dim=768, num_heads=12, head_dim=64, mlp_dim=2048,
    ...     num_encoder_layers=12, num_decoder_layers=12)
    >>> round(3 * forward_flops(base, 512, 114) / 1e12, 3)
    0.426
    """
    embed, inner = config.embed_dim, config.num_heads * config.head_dim
    matrices = len(config.mlp_activations) + 1

    def attention(queries: int, keys: int) -> int:
        maps = 4 * embed * inner * queries + 4 * embed * inner * keys
        return maps + 4 * queries * keys * inner

    def feed_forward(tokens: int) -> int:
        return 2 * matrices * embed * config.mlp_dim * tokens

    encoder_layer = attention(inputs_length, inputs_length) + feed_forward(inputs_length)
    decoder_layer = attention(targets_length, targets_length) + feed_forward(targets_length)
    if config.num_encoder_layers:
        decoder_layer += attention(targets_length, inputs_length)
    logits = 2 * embed * config.vocab_size * targets_length
    return (
        config.num_encoder_layers * encoder_layer
        + config.num_decoder_layers * decoder_layer
        + logits
    )


def train_flops(config: T5Config, inputs_length: int, targets_length: int) -> int:
    """Returns the FLOPs of one sequence forward and backward: three times the forward ones."""
    return 3 * forward_flops(config, inputs_length, targets_length)
