import pytest

from t5lite.core.errors import UserError
from tests import small

ROTARY = {"positions": "rotary"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder_embed_dim": 32},
            "separate_embeddings must be True with T5Config.encoder_embed_dim 32 and embed_dim 16",
        ),
        (
            {**ROTARY, "encoder_embed_dim": 8, "separate_embeddings": True}
            | {"merged_attention": True},
            "merged_attention must be False with T5Config.encoder_embed_dim 8 and embed_dim 16",
        ),
        ({"encoder_mlp_dim": 0}, "T5Config.encoder_mlp_dim must be a whole number >= 1, got 0"),
        ({"encoder_attention_scale": 0.0}, "encoder_attention_scale must be over 0, got 0.0"),
        (
            {"num_encoder_layers": 0, "encoder_mlp_dim": 8},
            "encoder_mlp_dim must be None for a model without both stacks, got 8; bind T5Config.ml",
        ),
        (
            {"num_kv_heads": 2, "encoder_num_heads": 3},
            r"encoder_num_kv_heads must be a divisor of the encoder's heads \(3\), got None",
        ),
        (
            {**ROTARY, "encoder_head_dim": 5},
            "T5Config.encoder_head_dim must be even for rotary positions, got 5",
        ),
        (
            {"num_encoder_layers": 0, "separate_embeddings": True},
            "T5Config.separate_embeddings must be False for a model without both stacks",
        ),
        (
            {"num_encoder_layers": 0, "merged_attention": True},
            "T5Config.merged_attention must be False for a model without both stacks",
        ),
        (
            {"merged_attention": True},
            "T5Config.positions must be 'rotary' with T5Config.merged_attention, got 'shared_bias'",
        ),
        (
            {"cross_positions": "continued"},
            "positions must be 'rotary' with T5Config.cross_positions 'continued', got 'shared_bia",
        ),
        (
            {**ROTARY, "cross_positions": "continued", "merged_attention": True},
            "merged_attention must be False with T5Config.cross_positions 'continued', got True",
        ),
        (
            {**ROTARY, "cross_positions": "continued", "num_encoder_layers": 0},
            "T5Config.cross_positions must be 'none' for a model without both stacks, got",
        ),
        (
            {"scale_tied_logits": False},
            "T5Config.scale_tied_logits must be True without T5Config.tied_logits, got False",
        ),
        ({"logits_soft_cap": -1.0}, "T5Config.logits_soft_cap must be over 0, got -1.0"),
        (
            {"rotary_base_windowed": 1e4, "encoder_windows": (3,)},
            "rotary_base_windowed must be None with T5Config.positions 'shared_bias', got 10000.0",
        ),
        (
            {"rotary_scaling": ("linear", 8.0)},
            r"rotary_scaling must be \(\) with T5Config.positions 'shared_bias', got \('linear'",
        ),
        (
            {**ROTARY, "rotary_base_windowed": 1e4},
            "rotary_base_windowed must be None without layers with a window, got 10000.0",
        ),
        (
            {**ROTARY, "rotary_base_windowed": 1e4, "rotary_scaling": ("linear", 8.0)}
            | {"encoder_windows": (3,), "decoder_windows": (3,)},
            "rotary_scaling must be empty if all layers have a window and T5Config.rotary_base_win",
        ),
        (
            {**ROTARY, "rotary_scaling": ("liner", 8.0)},
            "T5Config.rotary_scaling is unknown: got 'liner'; did you mean 'linear'",
        ),
        (
            {**ROTARY, "rotary_scaling": ("llama3", 8.0)},
            r"rotary_scaling must be \('llama3', factor, low_frequency_factor, high_frequency_fact",
        ),
        (
            {**ROTARY, "rotary_scaling": ("linear", -8.0)},
            "T5Config.rotary_scaling: factor must be over 0, got -8.0",
        ),
        (
            {**ROTARY, "rotary_scaling": ("llama3", 8.0, 4.0, 4.0, 8192)},
            "must be with low_frequency_factor under high_frequency_factor, got",
        ),
    ],
)
def test_fields_without_effect_or_in_conflict_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        small.config(**changes)


def test_sizes_of_the_encoder_are_those_of_the_decoder_where_none_are_given():
    config = small.config()
    assert config.encoder_config() is config
    unequal = small.config(encoder_num_heads=4, encoder_mlp_dim=8, num_kv_heads=2)
    encoder = unequal.encoder_config()
    assert encoder == small.config(num_heads=4, mlp_dim=8, num_kv_heads=2)
    assert encoder.encoder_config() is encoder
