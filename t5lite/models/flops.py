"""FLOPs of one training step by the formula, matrix products only, nothing counted twice.

Recomputed activations are not counted. Attention is counted over all keys of its window, with no
credit for causal masks, and keys and values of cross-attention are counted over the input. Of
experts, those that a token goes to and the router are counted. Of adapters, the products for each
token and the keys of prefixes are counted, and not what is computed once per step, such as the
norms of DoRA and the network of P-tuning. Adapters without `products` count as nothing.

Backward, a product costs its FLOPs again for each of its two operands that needs a gradient: a
kernel that trains, or activations that a parameter which trains has changed.
"""

from collections.abc import Collection, Mapping, Sequence

from t5lite.models.adapted_maps import AdaptedMap, adapted_maps
from t5lite.models.adapters import AddedProducts, CountedAdapter
from t5lite.models.config import T5Config
from t5lite.models.masks import Window
from t5lite.models.model import Model
from t5lite.models.stack import window_pattern
from t5lite.models.token_adapters import prefix_length


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
    return _count(model, lengths, None).forward


def train_flops(
    model: Model, lengths: Mapping[str, int], trained: Collection[str] | None = None
) -> int:
    """Returns the FLOPs of one sequence forward and backward.

    Args:
        lengths: of a row, in tokens, by feature.
        trained: names of the parameters that train; None for all, which makes it three times the
            FLOPs forward.
    """
    products = _count(model, lengths, trained)
    return products.forward + products.backward


class _Products:
    """Counts matrix products. Every value is represented by whether it needs a gradient."""

    def __init__(self, trained: Collection[str] | None, maps: Mapping[str, AdaptedMap]) -> None:
        self._trained = trained
        self._maps = maps
        self.forward = 0
        self.backward = 0

    def trains(self, name: str) -> bool:
        """Whether a parameter trains, or any parameter below a name."""
        trained = self._trained
        if trained is None:
            return True
        return name in trained or any(each.startswith(f"{name}/") for each in trained)

    def product(self, flops: int, one: bool, other: bool) -> bool:
        """Counts a product and returns its value."""
        self.forward += flops
        self.backward += flops * (one + other)
        return one or other

    def linear(self, flops: int, x: bool, name: str) -> bool:
        """Counts a linear map and its adapters, and returns its value."""
        if name not in self._maps:
            return self.product(flops, x, self.trains(f"{name}/kernel")) or self.trains(name)
        one = self._maps[name]
        added = [
            each
            for adapter in one.adapters
            if isinstance(adapter, CountedAdapter)
            for each in adapter.products(one.site)
        ]
        size = 2 * one.site.num_inputs * one.site.num_outputs
        for each in added:
            if each.reads == "scaled_input":
                x = self._chain(each, flops // size, x, name)
        y = self.product(flops, x, self.trains(f"{name}/kernel")) or self.trains(f"{name}/bias")
        for each in added:
            if each.reads != "scaled_input":
                y = self._chain(each, flops // size, x if each.reads == "input" else y, name) or y
        return y or self.trains(name)

    def _chain(self, added: AddedProducts, inputs: int, x: bool, name: str) -> bool:
        """Counts products with kernels one after another, for a number of inputs of their map."""
        for part, size in added.kernels:
            x = self.product(2 * size * inputs, x, self.trains(f"{name}/{part}"))
        return x


def _count(model: Model, lengths: Mapping[str, int], trained: Collection[str] | None) -> _Products:
    config = model.config
    inputs = lengths["encoder_input_tokens"] if model.has_encoder else 0
    # The decoder of a classifier reads the inputs.
    targets = lengths.get("decoder_input_tokens", inputs) if config.num_decoder_layers else 0
    products = _Products(trained, adapted_maps(model))
    embedded = products.trains("token_embedder/embedding")
    encoded = embedded
    if config.separate_embeddings:
        encoded = products.trains("encoder_token_embedder/embedding")
    has_prompt = products.trains("prompt")
    if model.has_encoder:
        encoded = _encoder(products, config.encoder_config(), encoded or has_prompt, inputs)
    x = encoded
    if config.num_decoder_layers:
        first = embedded or (has_prompt and not model.has_encoder)
        x = _decoder(products, config, first, encoded, targets, inputs)
    if config.logits_transform:
        flops = 2 * config.embed_dim**2 * inputs
        x = products.linear(flops, x, "logits_transform/dense")
        x = x or products.trains("logits_transform/norm")
    outputs = config.vocab_size if model.classes is None else model.classes.count
    flops = 2 * config.embed_dim * outputs * (targets or inputs)
    if model.classes is not None:
        if model.classes.has_dense:
            dense = 2 * config.embed_dim**2 * inputs
            x = products.linear(dense, x, "classifier/dense") or products.trains("classifier/dense")
        products.linear(flops, x, "classifier")
        return products
    if config.next_sentence:
        dense = 2 * config.embed_dim**2 * inputs
        y = products.linear(dense, x, "next_sentence/dense") or products.trains("next_sentence")
        products.linear(4 * config.embed_dim * inputs, y, "next_sentence")
    if config.tied_logits:
        products.product(flops, x, embedded)
    else:
        products.linear(flops, x, "decoder/logits_dense" if model.has_decoder else "logits_dense")
    return products


def _encoder(products: _Products, config: T5Config, x: bool, tokens: int) -> bool:
    layers = "encoder/layers"
    trains = products.trains
    bias = trains("encoder/relpos_bias") or trains(f"{layers}/relpos_bias")
    added = ("position_embedder", "token_type_embedder", "embedding_norm")
    x = x or any(trains(f"encoder/{name}") for name in added)
    has_global = config.encoder_attention == "transient_global"
    global_tokens = tokens // config.global_block_size if has_global else 0
    for window in _windows(config.encoder_windows, config.num_encoder_layers):
        normed = x or trains(f"{layers}/pre_attention_layer_norm")
        memory = normed
        seen = _seen(tokens, window)
        if config.encoder_attention != "full":
            seen = 3 * (config.local_radius + 1) + global_tokens
        if has_global:
            # The sums that make global tokens are a product with a constant matrix.
            sums = products.product(2 * tokens * global_tokens * config.embed_dim, normed, False)
            memory = sums or trains(f"{layers}/global_layer_norm")
            bias = bias or trains("encoder/side_relpos_bias")
        y = _attention(
            products,
            config,
            f"{layers}/attention",
            values=(normed, bias),
            sources=((memory, tokens + global_tokens),),
            sizes=(tokens, seen),
        )
        x = x or y or trains(f"{layers}/post_attention_layer_norm")
        x = _feed_forward(products, config, layers, x, tokens)
    return x or trains("encoder/encoder_norm")


def _decoder(
    products: _Products, config: T5Config, x: bool, encoded: bool, targets: int, inputs: int
) -> bool:
    layers = "decoder/layers"
    trains = products.trains
    bias = trains("decoder/relpos_bias") or trains(f"{layers}/relpos_bias")
    for window in _windows(config.decoder_windows, config.num_decoder_layers):
        normed = x or trains(f"{layers}/pre_self_attention_layer_norm")
        memory = inputs if config.merged_attention else 0
        y = _attention(
            products,
            config,
            f"{layers}/self_attention",
            values=(normed, bias),
            sources=((normed, targets), (encoded, memory)) if memory else ((normed, targets),),
            sizes=(targets, _seen(targets, window and (window[0], 0)) + memory),
        )
        x = x or y or trains(f"{layers}/post_self_attention_layer_norm")
        if config.has_cross_attention:
            y = _attention(
                products,
                config,
                f"{layers}/encoder_decoder_attention",
                values=(x or trains(f"{layers}/pre_cross_attention_layer_norm"), False),
                sources=((encoded, inputs),),
                sizes=(targets, inputs),
                source_dim=config.encoder_config().embed_dim,
            )
            x = x or y or trains(f"{layers}/post_cross_attention_layer_norm")
        x = _feed_forward(products, config, layers, x, targets)
    return x or trains("decoder/decoder_norm")


def _attention(
    products: _Products,
    config: T5Config,
    name: str,
    *,
    values: tuple[bool, bool],
    sources: Sequence[tuple[bool, int]],
    sizes: tuple[int, int],
    source_dim: int | None = None,
) -> bool:
    """Counts an attention with its linear maps and returns its value.

    Args:
        values: what queries are made from, and the bias.
        sources: what keys and values are made from, each with its tokens.
        sizes: number of queries, and of keys that each is compared with, but for prefixes.
        source_dim: width of the sources; None for that of the queries.
    """
    x, bias = values
    queries, seen = sizes
    heads = config.num_heads * config.head_dim
    narrow = 2 * (source_dim or config.embed_dim) * config.kv_heads * config.head_dim
    wide = 2 * config.embed_dim * heads * queries
    pairs = 2 * queries * (seen + prefix_length(config.adapters, name)) * heads

    def made(map_name: str) -> bool:
        parts = [products.linear(narrow * n, source, f"{name}/{map_name}") for source, n in sources]
        return any(parts)

    query = products.linear(wide, x, f"{name}/query") or products.trains(f"{name}/query_norm")
    trains = products.trains
    key = made("key") or trains(f"{name}/key_norm") or trains(f"{name}/prefix_key")
    value = made("value") or trains(f"{name}/prefix_value")
    weights = products.product(pairs, query, key) or bias
    return products.linear(wide, products.product(pairs, weights, value), f"{name}/out")


def _feed_forward(products: _Products, config: T5Config, layers: str, x: bool, tokens: int) -> bool:
    """Counts a feed-forward sublayer and returns the residual stream after it."""
    name = f"{layers}/mlp"
    normed = x or products.trains(f"{layers}/pre_mlp_layer_norm")
    flops = 2 * config.embed_dim * config.mlp_dim * tokens * config.experts_per_token
    scores = False
    if config.num_experts is not None:
        of_router = 2 * config.embed_dim * config.num_experts * tokens
        scores = products.linear(of_router, normed, f"{name}/router")
    count = len(config.mlp_activations)
    maps = ["wi"] if count == 1 else [f"wi_{index}" for index in range(count)]
    hidden = [products.linear(flops, normed, f"{name}/{each}") for each in maps]
    y = products.linear(flops, any(hidden), f"{name}/wo") or scores
    return x or y or products.trains(f"{layers}/post_mlp_layer_norm")


def _windows(windows: Sequence[Window | None], num_layers: int) -> list[Window | None]:
    """Returns the window of each layer."""
    pattern = window_pattern(windows, num_layers)
    return [pattern.windows[kind] for kind in pattern.kinds]


def _seen(tokens: int, window: Window | None) -> int:
    """Returns how many keys of a sequence a query is compared with, both sides of it counted."""
    return tokens if window is None else min(tokens, sum(window) + 1)
