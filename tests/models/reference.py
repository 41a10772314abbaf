"""T5 in plain NumPy and float64, written from the formulas of the papers; slow and short."""

import numpy as np
from scipy.special import log_softmax, softmax


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(x, scale, config):
    scale = 1 + scale if config.norm == "rms_plus_one" else scale
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def added(p, name, x, output, config):
    """The residual stream with the output of a sublayer, normalised first in sandwich placement."""
    if config.norm_placement == "sandwich":
        output = norm(output, p[f"post_{name}_layer_norm"]["scale"], config)
    return x + output


def near(length, windows, i):
    """Which keys the window of the i-th layer contains."""
    window = windows[i % len(windows)] if windows else None
    left, right = (length, length) if window is None else window
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    return (distance >= -left) & (distance <= right)


def bucket(distance, bidirectional):
    """The bucket of one distance, 32 buckets up to distance 128."""
    buckets, first = 32, 0
    if bidirectional:
        buckets, first = 16, 16 * (distance > 0)
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    share = np.log(distance / exact) / np.log(128 / exact)
    return first + min(exact + int(share * (buckets - exact)), buckets - 1)


def bias(table, queries, keys, bidirectional):
    rows = [[bucket(k - q, bidirectional) for k in range(keys)] for q in range(queries)]
    return table[:, np.array(rows)]


def attention(p, x, source, mask, bias, config):
    q, k, v = (
        np.einsum("ble,ehd->blhd", of, p[name]["kernel"])
        for name, of in [("query", x), ("key", source), ("value", source)]
    )
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * config.attention_scale
    if (cap := config.attention_soft_cap) is not None:
        scores = cap * np.tanh(scores / cap)
    scores = scores + bias
    weights = softmax(np.where(mask[:, None], scores, -1e10), axis=-1)
    return np.einsum("bhqk,bkhd,hde->bqe", weights, v, p["out"]["kernel"])


def mlp(p, x):
    if "wi" in p:
        return np.maximum(x @ p["wi"]["kernel"], 0) @ p["wo"]["kernel"]
    return (gelu(x @ p["wi_0"]["kernel"]) * (x @ p["wi_1"]["kernel"])) @ p["wo"]["kernel"]


def layer(tree, i):
    """The i-th of stacked layers."""
    return {k: layer(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def float64(tree):
    return {
        k: float64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()
    }


def encode(p, batch, config):
    segments = batch["encoder_segment_ids"]
    mask = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    x = p["token_embedder"]["embedding"][batch["encoder_input_tokens"]]
    p = p["encoder"]
    length = x.shape[1]
    b = bias(p["relpos_bias"]["rel_embedding"], length, length, True)
    for i in range(len(p["layers"]["pre_mlp_layer_norm"]["scale"])):
        q = layer(p["layers"], i)
        y = norm(x, q["pre_attention_layer_norm"]["scale"], config)
        seen = mask & near(length, config.encoder_windows, i)
        x = added(q, "attention", x, attention(q["attention"], y, y, seen, b, config), config)
        y = norm(x, q["pre_mlp_layer_norm"]["scale"], config)
        x = added(q, "mlp", x, mlp(q["mlp"], y), config)
    return norm(x, p["encoder_norm"]["scale"], config)


def logits(p, batch, config):
    p = float64(p)
    encoded = encode(p, batch, config) if "encoder" in p else None
    segments = batch["decoder_segment_ids"]
    mask = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    embedding = p["token_embedder"]["embedding"]
    x = embedding[batch["decoder_input_tokens"]]
    length = x.shape[1]
    mask = mask & np.tril(np.ones((length, length), bool))
    p = p["decoder"]
    b = bias(p["relpos_bias"]["rel_embedding"], length, length, False)
    for i in range(len(p["layers"]["pre_mlp_layer_norm"]["scale"])):
        q = layer(p["layers"], i)
        y = norm(x, q["pre_self_attention_layer_norm"]["scale"], config)
        seen = mask & near(length, config.decoder_windows, i)
        y = attention(q["self_attention"], y, y, seen, b, config)
        x = added(q, "self_attention", x, y, config)
        if encoded is not None:
            keys = batch["encoder_segment_ids"]
            cross = (segments[:, :, None] == keys[:, None, :]) & (keys[:, None, :] > 0)
            y = norm(x, q["pre_cross_attention_layer_norm"]["scale"], config)
            y = attention(q["encoder_decoder_attention"], y, encoded, cross, 0.0, config)
            x = added(q, "cross_attention", x, y, config)
        y = norm(x, q["pre_mlp_layer_norm"]["scale"], config)
        x = added(q, "mlp", x, mlp(q["mlp"], y), config)
    x = norm(x, p["decoder_norm"]["scale"], config)
    if config.tied_logits:
        return x @ embedding.T / np.sqrt(x.shape[-1])
    return x @ p["logits_dense"]["kernel"]


def loss(p, batch, config):
    """Cross-entropy in nats, summed over weighted tokens."""
    log_probs = log_softmax(logits(p, batch, config), axis=-1)
    picked = np.take_along_axis(log_probs, batch["decoder_target_tokens"][..., None], axis=-1)
    return -(picked[..., 0] * batch["decoder_loss_weights"]).sum()
