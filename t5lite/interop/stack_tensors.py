"""Names of the tensors in the layers of Gemma, Llama, Qwen and those made from them."""

from collections.abc import Mapping

_MAPS = {
    "query/kernel": "q_proj.weight",
    "key/kernel": "k_proj.weight",
    "value/kernel": "v_proj.weight",
    "out/kernel": "o_proj.weight",
    "query_norm/scale": "q_norm.weight",
    "key_norm/scale": "k_norm.weight",
    "wi_0/kernel": "gate_proj.weight",
    "wi_1/kernel": "up_proj.weight",
    "wo/kernel": "down_proj.weight",
}
_SUBLAYERS = {
    "attention": "self_attn",
    "self_attention": "self_attn",
    "encoder_decoder_attention": "cross_attn",
    "mlp": "mlp",
}


def layer_tensor(name: str, norms: Mapping[str, str]) -> str:
    """Returns the tensor of a layer's parameter.

    Args:
        name: after `layers/`, such as `mlp/wo/kernel`.
        norms: the tensors of the norms of sublayers, by the parameter's name.

    >>> layer_tensor("self_attention/query/kernel", {})
    'self_attn.q_proj.weight'
    """
    part, _, inner = name.partition("/")
    if part in norms:
        return f"{norms[part]}.weight"
    return f"{_SUBLAYERS[part]}.{_MAPS[inner]}"


def is_transposed(name: str) -> bool:
    """Returns whether the tensor of a parameter is its transpose."""
    return name.endswith("/kernel")
