"""T5 in plain NumPy and float64, written from the formulas of the papers; slow and short."""

import numpy as np
from scipy.special import log_softmax, softmax


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(x, weights, config):
    scale = 1 + weights["scale"] if config.norm == "rms_plus_one" else weights["scale"]
    if config.norm.startswith("layer"):
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale + weights.get("bias", 0)


def pre(p, name, x, config):
    """The input of a sublayer or, for the name of a stack, its output."""
    return x if config.norm_placement == "post" else norm(x, p[name], config)


def added(p, name, x, output, config):
    """The residual stream with the output of a sublayer: normalised first, after, or not at all."""
    if config.norm_placement == "sandwich":
        output = norm(output, p[f"post_{name}_layer_norm"], config)
    x = x + output
    return norm(x, p[f"post_{name}_layer_norm"], config) if config.norm_placement == "post" else x


def linear(einsum, x, p):
    return np.einsum(einsum, x, p["kernel"]) + p.get("bias", 0)


def near(length, window):
    """Which keys a window contains."""
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


def speeds(count, window, config):
    """By how many radians a token turns each pair of a head, in a layer with this window."""
    base, scaling = config.rotary_base, config.rotary_scaling
    if window is not None and config.rotary_base_windowed is not None:
        base, scaling = config.rotary_base_windowed, ()
    speed = base ** (-np.arange(count) / count)
    if not scaling:
        return speed
    kind, factor, *others = scaling
    if kind == "linear":
        return speed / factor
    low, high, length = others
    wavelength = 2 * np.pi / speed
    smooth = (length / wavelength - low) / (high - low)
    between = (1 - smooth) * speed / factor + smooth * speed
    slow, fast = wavelength > length / low, wavelength < length / high
    return np.where(fast, speed, np.where(slow, speed / factor, between))


def rotated(x, window, config, first=0):
    """Pairs (i, i + d / 2) as complex numbers, turned by their positions first, first + 1, ..."""
    if config.positions != "rotary":
        return x
    half = x.shape[-1] // 2
    positions = np.reshape(first, (-1, 1)) + np.arange(x.shape[1])
    angles = positions[..., None] * speeds(half, window, config)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, :, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def heads(p, name, x, config):
    """Queries, keys or values, normalised if there is a norm of them."""
    made = linear("ble,ehd->blhd", x, p[name])
    return norm(made, p[f"{name}_norm"], config) if f"{name}_norm" in p else made


def self_attention(p, x, mask, bias, config, i, *, windows, scale, memory=None):
    """Of the i-th layer. `memory` is encoded tokens that are read too, and which of them are."""
    window = windows[i % len(windows)] if windows else None
    q, k, v = (heads(p, name, x, config) for name in ("query", "key", "value"))
    q, k = (rotated(each, window, config) for each in (q, k))
    mask = mask & near(x.shape[1], window)
    if memory is not None:
        encoded, seen = memory
        k = np.concatenate([k, heads(p, "key", encoded, config)], axis=1)
        v = np.concatenate([v, heads(p, "value", encoded, config)], axis=1)
        mask = np.concatenate([mask, seen], axis=2)
    return attention(p, q, k, v, mask, bias, config, scale)


def attention(p, q, k, v, mask, bias, config, scale):
    k, v = (np.repeat(each, q.shape[2] // k.shape[2], axis=2) for each in (k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if (cap := config.attention_soft_cap) is not None:
        scores = cap * np.tanh(scores / cap)
    scores = scores + bias
    weights = softmax(np.where(mask[:, None], scores, -1e10), axis=-1)
    return linear("bqhd,hde->bqe", np.einsum("bhqk,bkhd->bqhd", weights, v), p["out"])


def silu(x):
    return x / (1 + np.exp(-x))


def mlp(p, x, config):
    wide = {name: linear("ble,ef->blf", x, p[name]) for name in p if name != "wo"}
    if "wi" in wide:
        return linear("blf,fe->ble", np.maximum(wide["wi"], 0), p["wo"])
    gate = {"gelu": gelu, "silu": silu}[config.mlp_activations[0]]
    return linear("blf,fe->ble", gate(wide["wi_0"]) * wide["wi_1"], p["wo"])


def embedded(table, tokens, config):
    x = table["embedding"][tokens]
    return x * np.sqrt(x.shape[-1]) if config.scale_embeddings else x


def layer(tree, i):
    """The i-th of stacked layers."""
    return {k: layer(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def stack_bias(p, length, bidirectional):
    """The relative bias of all layers of a stack, 0 if it has none."""
    if "relpos_bias" not in p:
        return 0.0
    return bias(p["relpos_bias"]["rel_embedding"], length, length, bidirectional)


def float64(tree):
    return {
        k: float64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()
    }


def encode(p, batch, config):
    segments = batch["encoder_segment_ids"]
    mask = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    table = p["encoder_token_embedder" if config.separate_embeddings else "token_embedder"]
    x = embedded(table, batch["encoder_input_tokens"], config)
    p = p["encoder"]
    b = stack_bias(p, x.shape[1], True)
    scale = config.encoder_attention_scale or config.attention_scale
    for i in range(len(p["layers"]["mlp"]["wo"]["kernel"])):
        q = layer(p["layers"], i)
        y = pre(q, "pre_attention_layer_norm", x, config)
        windows = config.encoder_windows
        y = self_attention(q["attention"], y, mask, b, config, i, windows=windows, scale=scale)
        x = added(q, "attention", x, y, config)
        y = pre(q, "pre_mlp_layer_norm", x, config)
        x = added(q, "mlp", x, mlp(q["mlp"], y, config), config)
    return pre(p, "encoder_norm", x, config)


def logits(p, batch, config):
    p = float64(p)
    encoded = encode(p, batch, config) if "encoder" in p else None
    segments = batch["decoder_segment_ids"]
    mask = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    embedding = p["token_embedder"]["embedding"]
    x = embedded(p["token_embedder"], batch["decoder_input_tokens"], config)
    length = x.shape[1]
    mask = mask & np.tril(np.ones((length, length), bool))
    p = p["decoder"]
    b = stack_bias(p, length, False)
    scale = config.attention_scale
    if encoded is not None:
        keys = batch["encoder_segment_ids"]
        cross = (segments[:, :, None] == keys[:, None, :]) & (keys[:, None, :] > 0)
    for i in range(len(p["layers"]["mlp"]["wo"]["kernel"])):
        q = layer(p["layers"], i)
        y = pre(q, "pre_self_attention_layer_norm", x, config)
        y = self_attention(
            *(q["self_attention"], y, mask, b, config, i),
            windows=config.decoder_windows,
            scale=scale,
            memory=(encoded, cross) if config.merged_attention else None,
        )
        x = added(q, "self_attention", x, y, config)
        if "encoder_decoder_attention" in q:
            r = q["encoder_decoder_attention"]
            y = pre(q, "pre_cross_attention_layer_norm", x, config)
            of = {"query": y, "key": encoded, "value": encoded}
            made = [heads(r, name, source, config) for name, source in of.items()]
            if config.cross_positions == "continued":
                # Of rows with one example.
                made[0] = rotated(made[0], None, config, first=(keys > 0).sum(axis=1))
                made[1] = rotated(made[1], None, config)
            y = attention(r, *made, cross, 0.0, config, scale)
            x = added(q, "cross_attention", x, y, config)
        y = pre(q, "pre_mlp_layer_norm", x, config)
        x = added(q, "mlp", x, mlp(q["mlp"], y, config), config)
    x = pre(p, "decoder_norm", x, config)
    return output(p, embedding, x, config)


def output(p, embedding, x, config):
    """Logits, through the embedding or the decoder's own map."""
    y = x @ embedding.T if config.tied_logits else x @ p["logits_dense"]["kernel"]
    if config.tied_logits and config.scale_tied_logits:
        y = y / np.sqrt(x.shape[-1])
    cap = config.logits_soft_cap
    return y if cap is None else cap * np.tanh(y / cap)


def loss(p, batch, config):
    """Cross-entropy in nats, summed over weighted tokens."""
    log_probs = log_softmax(logits(p, batch, config), axis=-1)
    picked = np.take_along_axis(log_probs, batch["decoder_target_tokens"][..., None], axis=-1)
    return -(picked[..., 0] * batch["decoder_loss_weights"]).sum()
