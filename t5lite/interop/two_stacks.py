"""Encoder and decoder that have a configuration each, as one `T5Config`."""

from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError
from t5lite.interop.stack_settings import used_rotary

# Fields of `T5Config` that encoder and decoder share, and their names in config.json.
_SHARED = {
    "vocab_size": "vocab_size",
    "mlp_activations": "hidden_activation",
    "norm_epsilon": "rms_norm_eps",
    "attention_soft_cap": "attn_logit_softcapping",
    "rotary_base": "rope_parameters",
    "rotary_base_windowed": "rope_parameters",
    "rotary_scaling": "rope_parameters",
}
_OWN = ("embed_dim", "num_heads", "head_dim", "mlp_dim", "attention_scale")


def both_stacks(
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    encoder_where: str,
    decoder_where: str,
) -> dict[str, Any]:
    """Returns the fields of `T5Config` for two stacks.

    Args:
        encoder, decoder: what `stack_fields` returns, and `vocab_size`.
        encoder_where, decoder_where: before the names of fields in messages.

    Raises:
        UserError: if they differ in a field that t5lite has once, with both values.
    """
    for ours, theirs in _SHARED.items():
        if encoder.get(ours) != decoder.get(ours):
            name = decoder_where.rpartition(" ")[2] + theirs
            raise UserError(
                f"{encoder_where}{theirs} and {name} must agree, got {encoder[ours]!r} and "
                f"{decoder[ours]!r}; t5lite has one for both stacks"
            )
    fields = dict(decoder)
    windows = fields.pop("windows")
    fields |= {
        "num_decoder_layers": fields.pop("num_layers"),
        "num_encoder_layers": encoder["num_layers"],
        "decoder_windows": windows,
        "encoder_windows": encoder["windows"],
    }
    own = {name: encoder[name] for name in _OWN if encoder[name] != decoder[name]}
    fields |= {f"encoder_{name}": value for name, value in own.items()}
    if decoder["num_kv_heads"] == decoder["num_heads"]:
        fields["num_kv_heads"] = None
    inherited = fields["num_kv_heads"] or encoder["num_heads"]
    if encoder["num_kv_heads"] != inherited:
        fields["encoder_num_kv_heads"] = encoder["num_kv_heads"]
    return used_rotary(fields, windows, encoder["windows"])


def one_encoder(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `T5Config` for an encoder alone; see `both_stacks`."""
    fields = dict(encoder)
    windows = fields.pop("windows")
    fields |= {"num_encoder_layers": fields.pop("num_layers"), "encoder_windows": windows}
    if fields["num_kv_heads"] == fields["num_heads"]:
        fields["num_kv_heads"] = None
    return used_rotary(fields, windows)
