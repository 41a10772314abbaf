"""Small models with the parts of modern families: sizes, depths and windows as uneven as they can
be.
"""

from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from tests import small

GEMMA = {
    "norm": "rms_plus_one",
    "norm_placement": "sandwich",
    "positions": "rotary",
    "attention_scale": 0.4,
    "scale_embeddings": True,
    "tied_logits": True,
    "scale_tied_logits": False,
}
GEMMA_3 = {
    **GEMMA,
    "qk_norm": True,
    "rotary_base": 1000.0,
    "rotary_base_windowed": 10.0,
    "rotary_scaling": ("linear", 8.0),
    "num_heads": 4,
    "num_kv_heads": 2,
    "decoder_windows": ((2, 0), (2, 0), None),
    "num_decoder_layers": 4,
}
T5GEMMA = {
    **GEMMA,
    "num_heads": 4,
    "num_kv_heads": 2,
    "encoder_embed_dim": 20,
    "encoder_num_heads": 6,
    "encoder_num_kv_heads": 2,
    "encoder_head_dim": 8,
    "encoder_mlp_dim": 28,
    "encoder_attention_scale": 0.3,
    "num_encoder_layers": 3,
    "encoder_windows": ((2, 2), None),
    "decoder_windows": ((1, 0), None),
    "attention_soft_cap": 2.0,
    "logits_soft_cap": 1.5,
    "separate_embeddings": True,
    "start_token": 2,
}
T5GEMMA_2 = {
    **GEMMA_3,
    "merged_attention": True,
    "encoder_windows": ((2, 1), (2, 1), None),
    "encoder_num_heads": 6,
    "num_encoder_layers": 3,
    "start_token": 2,
}
FAMILIES = {
    "t5gemma": EncoderDecoder(small.config(**T5GEMMA)),
    "t5gemma_2": EncoderDecoder(small.config(**T5GEMMA_2)),
    "redllm": EncoderDecoder(
        small.config(
            positions="rotary",
            rotary_base=20.0,
            cross_positions="continued",
            mlp_activations=("silu", "linear"),
            attention_scale=0.4,
            tied_logits=True,
            num_decoder_layers=1,
        )
    ),
    "gemma_3": DecoderOnly(small.decoder_config(**GEMMA_3)),
    "llama_3": DecoderOnly(
        small.decoder_config(
            positions="rotary",
            rotary_base=50.0,
            rotary_scaling=("llama3", 8.0, 1.0, 4.0, 12.0),
            num_heads=4,
            num_kv_heads=2,
            mlp_activations=("silu", "linear"),
            attention_scale=0.4,
        )
    ),
}
