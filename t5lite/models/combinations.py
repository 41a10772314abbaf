"""Checks of `T5Config` fields that have an effect only together with others, or exclude them."""

from t5lite.core.errors import choose
from t5lite.core.fields import field_error, field_name
from t5lite.core.numbers import check_number
from t5lite.models.config_fields import ENCODER_FIELDS, T5Fields
from t5lite.models.masks import Window
from t5lite.models.positions import ROTARY_SCALINGS, scaling_numbers


def check_encoder_sizes(config: T5Fields) -> None:
    """Checks the sizes of the encoder where they differ from the decoder's.

    Raises:
        UserError: for a size that is no whole number, does not fit the others, or has no effect.
    """
    own = [name for name in ENCODER_FIELDS if getattr(config, f"encoder_{name}") is not None]
    for name in own:
        field = f"encoder_{name}"
        value = getattr(config, field)
        if name != "attention_scale" and not (type(value) is int and value > 0):
            raise field_error(config, field, "a whole number >= 1")
        if not (config.num_encoder_layers and config.num_decoder_layers):
            rule = "None for a model without both stacks"
            remedy = f"bind {field_name(config, name)}"
            raise field_error(config, field, rule, remedy)
    if not own:
        return
    of_encoder = {name: getattr(config, f"encoder_{name}") for name in own}
    heads = of_encoder.get("num_heads", config.num_heads)
    groups = of_encoder.get("num_kv_heads", config.num_kv_heads)
    if groups is not None and heads % groups:
        rule = f"a divisor of the encoder's heads ({heads})"
        remedy = "" if "num_kv_heads" in own else f"the decoder has {groups}"
        raise field_error(config, "encoder_num_kv_heads", rule, remedy)
    if config.positions == "rotary" and of_encoder.get("head_dim", 2) % 2:
        raise field_error(config, "encoder_head_dim", "even for rotary positions")
    if of_encoder.get("embed_dim", config.embed_dim) == config.embed_dim:
        return
    for field, holds in (
        ("separate_embeddings", config.separate_embeddings),
        ("merged_attention", not config.merged_attention),
    ):
        if not holds:
            owner = field_name(config, "encoder_embed_dim")
            widths = f"{owner} {config.encoder_embed_dim} and embed_dim {config.embed_dim}"
            raise field_error(config, field, f"{field == 'separate_embeddings'} with {widths}")


def check_stacks(config: T5Fields) -> None:
    """Checks what encoder and decoder share or exchange.

    Raises:
        UserError: for a field that needs both stacks, or other positions.
    """
    for field in ("separate_embeddings", "merged_attention"):
        if getattr(config, field) and not (config.num_encoder_layers and config.num_decoder_layers):
            raise field_error(config, field, "False for a model without both stacks")
    if config.cross_positions != "none":
        needed = {
            "positions": (config.positions == "rotary", "'rotary'"),
            "merged_attention": (not config.merged_attention, "False"),
        }
        owner = f"{field_name(config, 'cross_positions')} {config.cross_positions!r}"
        for field, (holds, rule) in needed.items():
            if not holds:
                raise field_error(config, field, f"{rule} with {owner}")
        if not (config.num_encoder_layers and config.num_decoder_layers):
            raise field_error(config, "cross_positions", "'none' for a model without both stacks")
    if config.merged_attention and config.positions in ("shared_bias", "layer_bias"):
        owner = field_name(config, "merged_attention")
        raise field_error(config, "positions", f"'rotary' with {owner}")


def check_stack_input(config: T5Fields) -> None:
    """Checks what is added to embeddings, and biases.

    Raises:
        UserError: for a field that has no effect, or without the parts that it needs.
    """
    is_learned = config.positions == "learned"
    if is_learned and config.num_decoder_layers:
        raise field_error(config, "positions", "other than 'learned' for a model with a decoder")
    length = config.max_positions
    if is_learned != (length is not None) or (is_learned and not (type(length) is int and length)):
        owner = f"{field_name(config, 'positions')} {config.positions!r}"
        rule = f"{'a whole number >= 1' if is_learned else 'None'} with {owner}"
        raise field_error(config, "max_positions", rule)
    for field, usual in (("num_token_types", 0), ("embedding_norm", False)):
        if getattr(config, field) != usual and not config.num_encoder_layers:
            raise field_error(config, field, f"{usual} for a model without an encoder")
    if config.linear_bias and config.num_experts is not None:
        raise field_error(config, "linear_bias", "False for a model with experts")


def check_rotary(config: T5Fields) -> None:
    """Checks rotary positions.

    Raises:
        UserError: for an unknown scaling, for numbers that it does not take, or for a field that
            applies to no layer.
    """
    for field, usual in (("rotary_base_windowed", None), ("rotary_scaling", ())):
        value = getattr(config, field)
        if value != usual and config.positions != "rotary":
            owner = f"{field_name(config, 'positions')} {config.positions!r}"
            raise field_error(config, field, f"{usual} with {owner}")
    if config.rotary_base_windowed is not None:
        windows: set[Window | None] = set()
        for stack in ("encoder", "decoder"):
            if getattr(config, f"num_{stack}_layers"):
                windows |= set(getattr(config, f"{stack}_windows") or (None,))
        if windows == {None}:
            raise field_error(config, "rotary_base_windowed", "None without layers with a window")
        if None not in windows and config.rotary_scaling:
            owner = field_name(config, "rotary_base_windowed")
            rule = f"empty if all layers have a window and {owner}"
            raise field_error(config, "rotary_scaling", rule)
    if config.rotary_scaling:
        name, *numbers = config.rotary_scaling
        owner = field_name(config, "rotary_scaling")
        choose(owner, name, ROTARY_SCALINGS)
        names = scaling_numbers(name)
        if len(numbers) != len(names):
            raise field_error(config, "rotary_scaling", f"({name!r}, {', '.join(names)})")
        for number_name, number in zip(names, numbers, strict=True):
            check_number(f"{owner}: {number_name}", number, "over 0", lambda x: x > 0)
        if name == "llama3" and not numbers[1] < numbers[2]:
            rule = "with low_frequency_factor under high_frequency_factor"
            raise field_error(config, "rotary_scaling", rule)


def check_logits(config: T5Fields) -> None:
    """Checks how logits are made.

    Raises:
        UserError: for a scale of tied logits that are not tied, or parts that only encoder-only
            models have.
    """
    for field in ("logits_transform", "logits_bias", "next_sentence"):
        if getattr(config, field) and config.num_decoder_layers:
            raise field_error(config, field, "False for a model with a decoder")
    if not (config.scale_tied_logits or config.tied_logits):
        owner = field_name(config, "tied_logits")
        raise field_error(config, "scale_tied_logits", f"True without {owner}")
