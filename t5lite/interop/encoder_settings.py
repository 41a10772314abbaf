"""What BERT and ModernBERT of transformers share: classes, sizes and activations."""

from collections.abc import Collection, Mapping
from typing import Any

from t5lite.core.errors import UserError, check_choice
from t5lite.interop.class_labels import read_classes
from t5lite.interop.foreign import StoredArray
from t5lite.interop.settings_values import size
from t5lite.interop.t5_settings import TRANSFORMERS_ACTIVATIONS
from t5lite.interop.writable import check_writable, no_counterpart
from t5lite.models.architectures import EncoderOnly
from t5lite.models.classifier import SPAN, Classes
from t5lite.models.config import T5Config
from t5lite.models.model import Model

MASKED_LM = "ForMaskedLM"
TAGGER = "ForTokenClassification"
ANSWERS = "ForQuestionAnswering"
PRETRAINING = "ForPreTraining"
# Parameters of the heads, whose tensors stand beside those of the encoder.
HEADS = frozenset(
    [
        "classifier/kernel",
        "classifier/bias",
        "next_sentence/kernel",
        "next_sentence/bias",
        "logits_bias",
        "logits_dense/kernel",
        *(f"logits_transform/dense/{leaf}" for leaf in ("kernel", "bias")),
        *(f"logits_transform/norm/{leaf}" for leaf in ("scale", "bias")),
    ]
)
# Our names of the activations that are written, and transformers'.
_WRITTEN_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_new", "gelu_exact": "gelu", "silu": "silu"}
_SIZES = {
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "num_encoder_layers": "num_hidden_layers",
}
ENCODER_SIZE_FIELDS = frozenset(_SIZES.values())
# Fields of `T5Config` that the configurations express.
_EXPRESSED = frozenset(_SIZES).union(
    [
        "head_dim",
        "num_kv_heads",
        "attention_scale",
        "mlp_activations",
        "norm_epsilon",
        "tied_logits",
        # Of decoders.
        "start_token",
    ]
)


def size_fields(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the fields of `T5Config` for sizes.

    Args:
        where: before the names of fields in messages.

    Raises:
        UserError: for a size that is none, or heads that do not divide the width.
    """
    fields: dict[str, Any] = {ours: size(settings, name, where) for ours, name in _SIZES.items()}
    embed_dim = fields["embed_dim"]
    heads = fields["num_heads"]
    if embed_dim % heads:
        raise UserError(
            f"{where}hidden_size must be a multiple of num_attention_heads ({heads}), got "
            f"{embed_dim}"
        )
    head_dim = embed_dim // heads
    return {**fields, "head_dim": head_dim, "attention_scale": head_dim**-0.5}


def activation(settings: Mapping[str, Any], name: str, where: str) -> str:
    """Returns our name of an activation, the exact GELU where the file has none.

    Raises:
        UserError: for one that t5lite does not have.
    """
    value = settings.get(name, "gelu")
    check_choice(f"{where}{name}", value, TRANSFORMERS_ACTIVATIONS)
    return TRANSFORMERS_ACTIVATIONS[value]


def class_of(named: str | None, tensors: Collection[str], head: str) -> str:
    """Returns how the name of a class ends.

    Args:
        named: the class that config.json names; None for the one that the tensors suggest.
        head: begins the names of tensors that logits of tokens are made by.
    """
    for end in (MASKED_LM, TAGGER, ANSWERS, PRETRAINING):
        if named is not None and named.endswith(end):
            return end
    if named is not None:
        return "Model"
    if "qa_outputs.weight" in tensors:
        return ANSWERS
    if "classifier.weight" in tensors:
        return TAGGER
    return MASKED_LM if any(name.startswith(head) for name in tensors) else "Model"


def logits_fields(kind: str, *, tied: bool, transform: bool, bias: bool) -> dict[str, Any]:
    """Returns the fields of `T5Config` for the logits of a class.

    Args:
        tied, bias: of logits of tokens.
        transform: whether the class transforms states before logits.
    """
    has_tokens = kind in (MASKED_LM, PRETRAINING)
    return {
        "tied_logits": tied or not has_tokens,
        # It has an effect on tied logits alone.
        "scale_tied_logits": has_tokens and not tied,
        "logits_transform": transform,
        "logits_bias": bias and has_tokens,
        "next_sentence": kind == PRETRAINING,
    }


def encoder_model(
    settings: Mapping[str, Any],
    config: T5Config,
    kind: str,
    tensors: Mapping[str, StoredArray],
    owner: str,
) -> EncoderOnly:
    """Returns the model, with the classes of a tagger, or those of answers.

    Raises:
        UserError: as `read_classes` does.
    """
    if kind == ANSWERS:
        return EncoderOnly(config, Classes(count=2, per_token=True, structure=SPAN))
    if kind != TAGGER:
        return EncoderOnly(config)
    matrix = "classifier.weight"
    classes = read_classes(settings, tensors, owner, matrix=matrix, per_token=True)
    return EncoderOnly(config, classes)


def written_class(
    model: Model, family: str, fixed: Mapping[str, Any], expressed: Collection[str], tagger: bool
) -> tuple[str, list[str]]:
    """Returns how the name of the class ends that a model is written as, and remarks.

    Args:
        family: its name, for messages.
        fixed: fields of `T5Config` that have one value in the family.
        expressed: fields that its configuration holds, besides those of all encoders.
        tagger: whether a tagger transforms states before logits.

    Raises:
        UserError: naming what the family cannot express.
    """
    config = model.config
    classes = model.classes
    if classes is not None and (classes.has_dense or not classes.per_token):
        what = "has_dense True" if classes.per_token else "per_token False"
        raise UserError(
            f"--to=huggingface: {family} of transformers has no counterpart of Classes.{what}; "
            "keep the checkpoint in t5lite's format"
        )
    remarks = []
    kind = MASKED_LM if config.logits_transform else "Model"
    if config.next_sentence and "next_sentence" in expressed:
        kind = PRETRAINING
    if classes is not None:
        kind = ANSWERS if classes.structure == SPAN else TAGGER
    elif kind == "Model":
        remarks.append(f"the logits of tokens are not written: {family}Model has none")
    has_tokens = kind in (MASKED_LM, PRETRAINING)
    transform = has_tokens or (tagger and kind != "Model")
    # The scale is that of logits of tokens, which other classes do not have.
    of_logits = {"logits_transform": transform, "scale_tied_logits": config.scale_tied_logits}
    if has_tokens:
        of_logits["scale_tied_logits"] = not config.tied_logits
    check_writable(EncoderOnly(config), family, {**fixed, **of_logits}, _EXPRESSED.union(expressed))
    if config.kv_heads != config.num_heads:
        raise no_counterpart(family, config, "num_kv_heads")
    if config.head_dim * config.num_heads != config.embed_dim:
        raise no_counterpart(family, config, "head_dim")
    if config.attention_scale != config.head_dim**-0.5:
        raise no_counterpart(family, config, "attention_scale")
    return kind, remarks


def written_sizes(config: T5Config) -> dict[str, Any]:
    """Returns the fields of config.json for sizes."""
    return {name: getattr(config, ours) for ours, name in _SIZES.items()}


def written_activation(config: T5Config, family: str, rest: tuple[str, ...]) -> str:
    """Returns transformers' name of the activation of the feed-forward layers.

    Args:
        rest: the activations after the first one.

    Raises:
        UserError: for activations that the family cannot express.
    """
    first, *others = config.mlp_activations
    if tuple(others) != rest or first not in _WRITTEN_ACTIVATIONS:
        raise no_counterpart(family, config, "mlp_activations")
    return _WRITTEN_ACTIVATIONS[first]
