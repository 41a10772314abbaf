"""Hugging Face's T5, mT5, umT5 and LongT5: a folder of config.json, safetensors and tokenizer.

Source: huggingface/transformers@v5.23.0:src/transformers/models/{t5,mt5,umt5,longt5}.
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.interop import tokenizer_files
from t5lite.interop.foreign import (
    Foreign,
    Shape,
    Stored,
    check_array,
    check_names,
    gathered,
    is_stacked,
    matrix_shape,
)
from t5lite.interop.huggingface_config import config_of, config_to_json, logits_scale
from t5lite.interop.tensor_files import read_json, stored_tensors, write_tensors
from t5lite.models.architectures import (
    Classes,
    EncoderDecoder,
    EncoderOnly,
    Model,
    parameters,
)
from t5lite.models.config import T5Config

EMBEDDING, LOGITS = "token_embedder/embedding", "decoder/logits_dense/kernel"
SHARED, LM_HEAD = "shared.weight", "lm_head.weight"
# Other names of the embedding, and a bias that old checkpoints hold and no model reads.
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
# T5ForTokenClassification keeps its encoder below this name.
TAGGER_PREFIX = "transformer."

_PROJECTIONS = {"query": "q", "key": "k", "value": "v", "out": "o"}
_ENCODER_ATTENTION = {
    "full": "SelfAttention",
    "local": "LocalSelfAttention",
    "transient_global": "TransientGlobalSelfAttention",
}


def tensor_name(config: T5Config, name: str) -> str:
    """Returns the tensor of a parameter, with `{layer}` where there is one for each layer.

    >>> config = T5Config(
    ...     vocab_size=384, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1)
    >>> tensor_name(config, "decoder/layers/encoder_decoder_attention/out/kernel")
    'decoder.block.{layer}.layer.1.EncDecAttention.o.weight'
    """
    whole = {
        EMBEDDING: SHARED,
        LOGITS: LM_HEAD,
        "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
        "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
        "classifier/kernel": "classifier.weight",
        "classifier/bias": "classifier.bias",
    }
    if name in whole:
        return whole[name]
    stack, *inner = name.split("/")
    is_encoder = stack == "encoder"
    own = _ENCODER_ATTENTION[config.encoder_attention] if is_encoder else "SelfAttention"
    first = f"{stack}.block.0.layer.0.{own}."
    if inner[0] == "relpos_bias":
        return first + "relative_attention_bias.weight"
    if inner[0] == "side_relpos_bias":
        return first + "global_relative_attention_bias.weight"
    block, (part, *rest) = f"{stack}.block.{{layer}}.layer.", inner[1:]
    last = 1 if is_encoder else 2
    match part:
        case "pre_attention_layer_norm" | "pre_self_attention_layer_norm":
            return block + "0.layer_norm.weight"
        case "pre_cross_attention_layer_norm":
            return block + "1.layer_norm.weight"
        case "pre_mlp_layer_norm":
            return f"{block}{last}.layer_norm.weight"
        case "relpos_bias":
            return f"{block}0.{own}.relative_attention_bias.weight"
        case "global_layer_norm":
            return f"{block}0.{own}.global_input_layer_norm.weight"
        case "attention" | "self_attention":
            return f"{block}0.{own}.{_PROJECTIONS[rest[0]]}.weight"
        case "encoder_decoder_attention":
            return f"{block}1.EncDecAttention.{_PROJECTIONS[rest[0]]}.weight"
        case "mlp":
            return f"{block}{last}.DenseReluDense.{rest[0]}.weight"
    raise AssertionError(name)


def tensor_names(config: T5Config, name: str, shape: Shape) -> list[str]:
    """Returns the tensors of a parameter, one or one for each layer."""
    pattern = tensor_name(config, name)
    layers = range(shape[0]) if is_stacked(name) else range(1)
    return [pattern.format(layer=layer) for layer in layers]


def tensor_shape(name: str, shape: Shape) -> Shape:
    """Returns the shape of each tensor of a parameter: matrices lie the other way round."""
    matrix = matrix_shape(name, shape[1:] if is_stacked(name) else shape)
    return matrix[::-1] if is_transposed(name) else matrix


def is_transposed(name: str) -> bool:
    """Returns whether a parameter's tensors are the matrices' transposes."""
    return name.endswith(("/kernel", "/rel_embedding"))


def read(folder: pathlib.Path) -> Foreign:
    """Returns the checkpoint in a folder.

    Raises:
        UserError: where a file is missing or damaged, or the tensors are not those of config.json.
    """
    settings = read_json(folder / "config.json")
    config = config_of(settings, str(folder / "config.json"))
    tensors = stored_tensors(folder)
    remarks = []
    if tensors.pop(UNUSED, None) is not None:
        remarks.append(f"{UNUSED} is not read: no T5 uses it")
    head = _class_of(settings, tensors)
    if head == "TokenClassification":
        tensors = {name.removeprefix(TAGGER_PREFIX): stored for name, stored in tensors.items()}
    tensors = _without_aliases(tensors, str(folder))
    if head != "ConditionalGeneration":
        config = dataclasses.replace(config, num_decoder_layers=0, tied_logits=True)
        classes = None
        if head == "TokenClassification":
            matrix = tensors.get("classifier.weight")
            if matrix is None or len(matrix.shape) != 2:
                raise UserError(f"{folder} lacks a matrix classifier.weight, as a tagger must have")
            classes = Classes(count=matrix.shape[0], per_token=True)
        model: Model = EncoderOnly(config, classes)
    else:
        model, tensors, remark = _with_logits(config, settings, tensors)
        remarks += remark
    if (layers := max(config.num_encoder_layers, config.num_decoder_layers)) > len(tensors):
        raise UserError(f"{folder} holds {len(tensors)} tensors, too few for {layers} layers")
    shapes = {name: box.value.shape for name, box in parameters(model).items()}
    names = {name: tensor_names(model.config, name, shape) for name, shape in shapes.items()}
    check_names(str(folder), [n for several in names.values() for n in several], list(tensors))
    params = {}
    for name, shape in shapes.items():
        for tensor in names[name]:
            check_array(str(folder), tensor, tensor_shape(name, shape), tensors[tensor])
        parts = [tensors[tensor] for tensor in names[name]]
        view = functools.partial(_as_tensor, name)
        params[name] = gathered(shape, parts, view, per_layer=is_stacked(name))
    vocabulary, remark = tokenizer_files.read(folder)
    return Foreign(model=model, params=params, vocabulary=vocabulary, remarks=(*remarks, *remark))


def _class_of(settings: Mapping[str, Any], tensors: Mapping[str, Stored]) -> str:
    """Returns which of the family's classes was saved: by its name or, without one, its tensors."""
    named = str((settings.get("architectures") or [""])[0])
    for kind in ("EncoderModel", "TokenClassification", "ConditionalGeneration"):
        if named.endswith(kind):
            return kind
    if any(name.startswith("decoder.") for name in tensors):
        return "ConditionalGeneration"
    return "TokenClassification" if "classifier.weight" in tensors else "EncoderModel"


def _without_aliases(tensors: dict[str, Stored], owner: str) -> dict[str, Stored]:
    """Leaves the embedding under one name; the others must be the same."""
    known = [name for name in (SHARED, *ALIASES) if name in tensors]
    if not known:
        return tensors
    first, *others = known
    for other in others:
        if not _equal(tensors[first], tensors[other]):
            raise UserError(
                f"{owner}: {other} must equal {first}: T5 has one embedding, got two that differ"
            )
    rest = {name: stored for name, stored in tensors.items() if name not in known}
    return {SHARED: tensors[first], **rest}


def _as_tensor(name: str, part: np.ndarray) -> np.ndarray:
    """A view of a parameter, or of one layer of it, as the tensor that it is there."""
    matrix = part.reshape(matrix_shape(name, part.shape))
    return matrix.T if is_transposed(name) else matrix


def _equal(one: Stored, other: Stored) -> bool:
    return one.shape == other.shape and all(
        np.array_equal(one.read(rows), other.read(rows)) for rows in one.pieces()
    )


def _with_logits(
    config: T5Config, settings: Mapping[str, Any], tensors: dict[str, Stored]
) -> tuple[Model, dict[str, Stored], list[str]]:
    """Returns the model with logits tied or of their own, whichever the tensors need."""
    scale = logits_scale(settings)
    root = 1.0 / math.sqrt(config.embed_dim)
    own = tensors.pop(LM_HEAD, None)
    # A head that is the embedding is kept under both names by some.
    if own is not None and SHARED in tensors and _equal(own, tensors[SHARED]):
        own = None
    if own is None and scale != 1.0:
        return EncoderDecoder(dataclasses.replace(config, tied_logits=True)), tensors, []
    config = dataclasses.replace(config, tied_logits=False)
    head = own or tensors.get(SHARED)
    if head is None:
        return EncoderDecoder(config), tensors, []
    remarks = []
    if scale != 1.0:
        # A matrix of its own whose result is scaled: the factor goes into the matrix.
        read_head = head.read
        head = Stored(
            head.shape,
            "float32",
            lambda rows: np.asarray(read_head(rows), np.float32) * np.float32(root),
        )
        remarks.append(f"{LM_HEAD} is multiplied by 1 / sqrt(d_model), as its model does")
    elif own is None:
        remarks.append(
            f"there is no {LM_HEAD}: logits get a copy of {SHARED}, to which they are tied without "
            "T5's scale; training separates the two"
        )
    return EncoderDecoder(config), {**tensors, LM_HEAD: head}, remarks


def write(foreign: Foreign, folder: pathlib.Path, dtype: np.dtype[Any]) -> list[str]:
    """Writes a checkpoint that `transformers` loads, and returns remarks.

    Raises:
        UserError: for a model that `transformers` has no class for.
    """
    model = foreign.model
    settings, remarks = config_to_json(model, dtype.name)
    prefix = TAGGER_PREFIX if isinstance(model, EncoderOnly) and model.classes else ""
    factor = np.float32(1.0)
    if logits_scale(settings) != 1.0 and not model.config.tied_logits:
        factor = np.float32(math.sqrt(model.config.embed_dim))
        remarks.append(
            f"{LM_HEAD} is multiplied by sqrt(d_model), which transformers 5 divides umT5's logits "
            "by; earlier versions would put the embedding in its place"
        )

    def group(name: str, array: LazyArray) -> tuple[dict[str, Shape], Callable[[], Any]]:
        names = tensor_names(model.config, name, array.shape)
        if not name.startswith("classifier"):
            names = [prefix + n for n in names]
        shape = tensor_shape(name, array.shape)

        def make() -> dict[str, np.ndarray]:
            whole = array.load()
            layers = whole if is_stacked(name) else whole[None]
            made = {n: _as_tensor(name, layer) for n, layer in zip(names, layers, strict=True)}
            if name == LOGITS and factor != 1.0:
                made = {n: layer * factor for n, layer in made.items()}
            return made

        return dict.fromkeys(names, shape), make

    # An encoder's logits of tokens have no place there; the remark says so.
    kept = {n: array for n, array in foreign.params.items() if n != "logits_dense/kernel"}
    write_tensors(folder, [group(n, array) for n, array in kept.items()], dtype)
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    if foreign.vocabulary is None:
        return [*remarks, "no tokenizer is written: the checkpoint has no vocabulary"]
    tokenizer_files.write(foreign.vocabulary, folder)
    return remarks
