"""Folders of Hugging Face: config.json, safetensors, the tokenizer and generation_config.json."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from t5lite.core.errors import UserError, check_choice
from t5lite.core.lazy import LazyArray
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.interop.families import FAMILIES, family_to_write
from t5lite.interop.family import Family, WrittenModel
from t5lite.interop.finite import finite_stored
from t5lite.interop.foreign import (
    ArrayShape,
    Foreign,
    check_array,
    check_names,
    gathered,
    is_stacked,
    matrix_shape,
)
from t5lite.interop.generation_settings import (
    GENERATION_FILE,
    TRANSFORMERS_VERSION,
    SpecialIds,
    generation_config,
    id_settings,
    read_special_ids,
)
from t5lite.interop.model_card import model_card
from t5lite.interop.t5_fields import unknown_fields
from t5lite.interop.tensor_files import read_json, stored_tensors, write_tensors
from t5lite.interop.tensor_names import without_wrappers
from t5lite.interop.tokenizer_files import read_tokenizer, write_tokenizer
from t5lite.models.model import Model, parameters

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
ADAPTER_FILE = "adapter_config.json"


def is_huggingface(path: pathlib.Path) -> bool:
    """Returns whether a path is a folder of a Hugging Face model.

    Raises:
        UserError: if the folder holds an adapter and no model.
    """
    if (path / CONFIG_FILE).is_file():
        return True
    if (path / ADAPTER_FILE).is_file():
        base = read_json(path / ADAPTER_FILE).get("base_model_name_or_path")
        raise UserError(
            f"{path} holds only an adapter of PEFT, whose base model is {base!r}; load both with "
            "peft, merge them with model.merge_and_unload(), save_pretrained, and convert that "
            "folder"
        )
    return False


def read_huggingface(folder: pathlib.Path, *, allow_nonfinite: bool = False) -> Foreign:
    """Returns the checkpoint in a folder.

    Args:
        allow_nonfinite: whether parameters may be NaN or infinite; otherwise reading one of them
            raises a UserError that names the tensor and the index.

    Raises:
        UserError: if a file is missing or damaged, the tensors do not match config.json, or the
            folder asks for something that t5lite does not have.
    """
    owner = str(folder)
    settings = read_json(folder / CONFIG_FILE)
    kind = settings.get("model_type")
    check_choice(f"{owner}/{CONFIG_FILE}: model_type", kind, FAMILIES)
    family = FAMILIES[str(kind)]
    tensors, remarks = without_wrappers(stored_tensors(folder), owner)
    for name in sorted(family.unused & tensors.keys()):
        del tensors[name]
        remarks.append(f"{name} is not read: no model of its family uses it")
    if not allow_nonfinite:
        tensors = finite_stored(tensors, owner)
    found = family.read(settings, tensors, owner)
    ids, more = read_special_ids(folder, settings)
    if unknown := unknown_fields(settings):
        remarks.append(f"{CONFIG_FILE}: unknown fields are ignored: {', '.join(unknown)}")
    vocabulary, others = read_tokenizer(folder, ids.special)
    model = with_start_token(found.model, ids.start)
    return Foreign(
        model=model,
        params=_params_of(family, model, dict(found.tensors), owner),
        vocabulary=vocabulary,
        remarks=(*remarks, *found.remarks, *more, *others),
    )


def with_start_token(model: Model, start: int) -> Model:
    """Returns the model with the token that precedes the first target."""
    return model.clone(config=dataclasses.replace(model.config, start_token=start))


def _params_of(
    family: Family, model: Model, tensors: dict[str, Any], owner: str
) -> dict[str, LazyArray]:
    config = model.config
    if (layers := max(config.num_encoder_layers, config.num_decoder_layers)) > len(tensors):
        raise UserError(f"{owner} holds {len(tensors)} tensors, too few for {layers} layers")
    shapes = {name: box.value.shape for name, box in parameters(model).items()}
    names = {name: family.tensor_names(model, name, shape) for name, shape in shapes.items()}
    check_names(owner, [n for several in names.values() for n in several], list(tensors))
    params = {}
    for name, shape in shapes.items():
        for tensor in names[name]:
            check_array(owner, tensor, family.tensor_shape(name, shape), tensors[tensor])
        parts = [tensors[tensor] for tensor in names[name]]
        view = functools.partial(_as_tensor, family, name)
        params[name] = gathered(shape, parts, view, per_layer=is_stacked(name))
    return params


def _as_tensor(family: Family, name: str, part: np.ndarray) -> np.ndarray:
    """Returns a view of a parameter, or of one layer of it, with the shape of its tensor."""
    matrix = part.reshape(matrix_shape(name, part.shape))
    return matrix.T if family.is_transposed(name) else matrix


def write_huggingface(
    foreign: Foreign,
    folder: pathlib.Path,
    dtype: np.dtype[Any],
    *,
    max_input_tokens: int = 512,
    max_target_tokens: int = 512,
) -> list[str]:
    """Writes a folder that transformers loads, and returns remarks.

    Args:
        max_input_tokens: `model_max_length` of the tokenizer.
        max_target_tokens: tokens after which `generate` stops.

    Raises:
        UserError: for a model or a vocabulary that transformers has no class for.
    """
    model = foreign.model
    vocabulary = foreign.vocabulary
    family = family_to_write()
    written = family.write(model, dtype.name)
    special = SpecialTokens() if vocabulary is None else vocabulary.special
    ids = SpecialIds(start=model.config.start_token, special=special)
    settings = written.settings | id_settings(ids)
    settings["transformers_version"] = TRANSFORMERS_VERSION
    kept = {n: array for n, array in foreign.params.items() if n not in written.skipped}
    groups = [_group(family, written, model, name, array) for name, array in kept.items()]
    write_tensors(folder, groups, dtype)
    _write_json(folder / CONFIG_FILE, settings)
    generation = None
    if settings["is_encoder_decoder"]:
        generation = generation_config(ids, max_target_tokens=max_target_tokens)
        _write_json(folder / GENERATION_FILE, generation)
    count = sum(math.prod(array.shape) for array in kept.values())
    card = model_card(settings, generation, parameters=count, step=foreign.step)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    remarks = list(written.remarks)
    if vocabulary is None:
        remarks.append("no tokenizer is written: the checkpoint has no vocabulary")
    else:
        write_tokenizer(vocabulary, folder, max_input_tokens=max_input_tokens)
    _make_readable(folder)
    return remarks


def _group(
    family: Family, written: WrittenModel, model: Model, name: str, array: LazyArray
) -> tuple[dict[str, ArrayShape], Callable[[], Any]]:
    """Returns the names and shapes of a parameter's tensors, and a function that makes them."""
    names = family.tensor_names(model, name, array.shape)
    if name not in written.unprefixed:
        names = [written.prefix + n for n in names]
    factor = np.float32(written.factors.get(name, 1.0))

    def make() -> dict[str, np.ndarray]:
        whole = array.load()
        layers = whole if is_stacked(name) else whole[None]
        made = {n: _as_tensor(family, name, x) for n, x in zip(names, layers, strict=True)}
        return made if factor == 1.0 else {n: x * factor for n, x in made.items()}

    return dict.fromkeys(names, family.tensor_shape(name, array.shape)), make


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _make_readable(folder: pathlib.Path) -> None:
    """Gives files the mode of newly created ones: safetensors creates its own for the owner."""
    os.umask(mask := os.umask(0))
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)
