"""Small encoder-only models with the parts of BERT and ModernBERT."""

import jax.numpy as jnp
import numpy as np

from t5lite.models.architectures import EncoderOnly
from tests import small

BERT_PARTS = {
    "num_decoder_layers": 0,
    "mlp_activations": ("gelu_exact",),
    "norm": "layer",
    "norm_placement": "post",
    "norm_epsilon": 1e-12,
    "embedding_norm": True,
    "linear_bias": True,
    "positions": "learned",
    "max_positions": 24,
    "num_token_types": 2,
    "attention_scale": 0.5,
    "tied_logits": True,
    "scale_tied_logits": False,
    "logits_transform": True,
    "logits_bias": True,
}
MODERNBERT_PARTS = {
    "num_decoder_layers": 0,
    # One layer is left over: full, window, window, full, window.
    "num_encoder_layers": 5,
    "encoder_windows": (None, 2, 2),
    "mlp_activations": ("gelu_exact", "linear"),
    "norm": "layer_no_bias",
    "norm_epsilon": 1e-5,
    "embedding_norm": True,
    "positions": "rotary",
    "rotary_base": 100.0,
    "rotary_base_windowed": 10.0,
    "attention_scale": 0.5,
    "tied_logits": True,
    "scale_tied_logits": False,
    "logits_transform": True,
    "logits_bias": True,
}
ENCODERS = {
    "bert": EncoderOnly(small.config(**BERT_PARTS)),
    "modernbert": EncoderOnly(small.config(**MODERNBERT_PARTS)),
}


def inputs(seed: int, lengths: list[int], *, types: bool) -> dict[str, jnp.ndarray]:
    """A row of examples of these lengths, the last one padding if there are over two."""
    rng = np.random.default_rng(seed)
    segments = np.concatenate([np.full(n, 1 + index) for index, n in enumerate(lengths)])
    batch = {
        "encoder_input_tokens": rng.integers(3, 259, segments.shape),
        "encoder_segment_ids": segments,
    }
    if types:
        batch["encoder_token_types"] = rng.integers(0, 2, segments.shape)
    return {name: jnp.asarray(row[None], jnp.int32) for name, row in batch.items()}
