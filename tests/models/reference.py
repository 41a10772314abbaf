"""T5 in plain NumPy and float64, written from the papers' formulas; slow, and short."""

import numpy as np
from scipy.special import log_softmax, softmax


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


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


def attention(p, x, source, mask, bias):
    q, k, v = (
        np.einsum("ble,ehd->blhd", of, p[name]["kernel"])
        for name, of in [("query", x), ("key", source), ("value", source)]
    )
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) + bias
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


def encode(p, batch):
    segments = batch["encoder_segment_ids"]
    mask = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    x = p["token_embedder"]["embedding"][batch["encoder_input_tokens"]]
    p = p["encoder"]
    length = x.shape[1]
    b = bias(p["relpos_bias"]["rel_embedding"], length, length, True)
    for i in range(len(p["layers"]["pre_mlp_layer_norm"]["scale"])):
        q = layer(p["layers"], i)
        y = norm(x, q["pre_attention_layer_norm"]["scale"])
        x = x + attention(q["attention"], y, y, mask, b)
        x = x + mlp(q["mlp"], norm(x, q["pre_mlp_layer_norm"]["scale"]))
    return norm(x, p["encoder_norm"]["scale"])


def logits(p, batch, tied=False):
    p = float64(p)
    encoded = encode(p, batch) if "encoder" in p else None
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
        y = norm(x, q["pre_self_attention_layer_norm"]["scale"])
        x = x + attention(q["self_attention"], y, y, mask, b)
        if encoded is not None:
            keys = batch["encoder_segment_ids"]
            cross = (segments[:, :, None] == keys[:, None, :]) & (keys[:, None, :] > 0)
            y = norm(x, q["pre_cross_attention_layer_norm"]["scale"])
            x = x + attention(q["encoder_decoder_attention"], y, encoded, cross, 0.0)
        x = x + mlp(q["mlp"], norm(x, q["pre_mlp_layer_norm"]["scale"]))
    x = norm(x, p["decoder_norm"]["scale"])
    if tied:
        return x @ embedding.T / np.sqrt(x.shape[-1])
    return x @ p["logits_dense"]["kernel"]


def loss(p, batch, tied=False):
    """Cross-entropy in nats, summed over weighted tokens."""
    log_probs = log_softmax(logits(p, batch, tied), axis=-1)
    picked = np.take_along_axis(log_probs, batch["decoder_target_tokens"][..., None], axis=-1)
    return -(picked[..., 0] * batch["decoder_loss_weights"]).sum()
