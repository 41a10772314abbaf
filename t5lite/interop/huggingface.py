"""Folders of Hugging Face: config.json, safetensors, the tokenizer and generation_config.json."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from t5lite.core.errors import UserError, check_choice
from t5lite.core.lazy import LazyArray
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.interop.families import FAMILIES, family_to_write
from t5lite.interop.family import Family, WrittenModel
from t5lite.interop.field_groups import check_known, check_required
from t5lite.interop.finite import finite_stored
from t5lite.interop.foreign import (
    Foreign,
    Kept,
    StoredArray,
    check_array,
    check_names,
    gathered,
    is_stacked,
    matrix_shape,
    row_block,
)
from t5lite.interop.generation_settings import (
    GENERATION_FILE,
    TRANSFORMERS_VERSION,
    SpecialIds,
    generation_config,
    read_special_ids,
)
from t5lite.interop.kept import KEPT_FILE, merged, split_aside
from t5lite.interop.lengths import read_lengths, with_lengths
from t5lite.interop.model_card import model_card
from t5lite.interop.tensor_files import TensorGroup, read_json, stored_tensors, write_tensors
from t5lite.interop.tensor_names import without_wrappers
from t5lite.interop.tokenizer_files import read_tokenizer, write_tokenizer
from t5lite.models.model import Model, parameters

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
ASIDE = (
    f"A checkpoint that was converted from such a model has its own in {KEPT_FILE}; copy that file "
    "beside it to write them"
)


def is_huggingface(path: pathlib.Path) -> bool:
    """Returns whether a path is a folder of a Hugging Face model."""
    return (path / CONFIG_FILE).is_file()


def read_huggingface(
    folder: pathlib.Path, *, allow_nonfinite: bool = False, ignore_fields: Collection[str] = ()
) -> Foreign:
    """Returns the checkpoint in a folder.

    Args:
        ignore_fields: fields of config.json that are unknown and do not change the model.
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
    check_known(settings, family.fields, ignore_fields, f"{owner}/{CONFIG_FILE}")
    check_required(settings, family.fields, f"{owner}/{CONFIG_FILE}")
    stored, aside = split_aside(stored_tensors(folder), family.aside)
    tensors, remarks = without_wrappers(stored, family.roots, owner, usual=family.prefix)
    kept = None if family.keep is None else family.keep(settings, aside)
    if aside and kept is None:
        remarks.append(f"{', '.join(family.aside)} are left out: text alone is converted")
    for name in sorted(family.unused & tensors.keys()):
        del tensors[name]
        remarks.append(f"{name} is not read: no model of its family uses it")
    if not allow_nonfinite:
        tensors = finite_stored(tensors, owner)
    found = family.read(settings, tensors, owner)
    ids, more = read_special_ids(folder, family.flat_ids(settings), family.usual_ids)
    vocabulary, others = read_tokenizer(folder, ids.special, has_encoder=found.model.has_encoder)
    model = found.model
    # Also of classifiers, whose decoders generate nothing.
    if model.config.num_decoder_layers:
        model = with_start_token(model, ids.start)
    return Foreign(
        model=model,
        params=_params_of(family, model, dict(found.tensors), owner),
        vocabulary=vocabulary,
        family=str(kind),
        kept=kept,
        lengths=read_lengths(settings, family.fields),
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
        parts = [row_block(tensors[tensor], *family.block_of(name)) for tensor in names[name]]
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
    family = family_to_write(model)
    written = family.write(model, dtype.name)
    special = SpecialTokens() if vocabulary is None else vocabulary.special
    ids = SpecialIds(start=model.config.start_token, special=special)
    settings = written.settings | family.id_fields(ids)
    for part in family.id_parts & settings.keys():
        settings[part] = settings[part] | family.id_fields(ids)
    settings["transformers_version"] = TRANSFORMERS_VERSION
    remarks = list(written.remarks)
    params = {n: array for n, array in foreign.params.items() if n not in written.skipped}
    groups = _groups(family, written, model, params, dtype)
    if (kept := written.usual_kept) is not None:
        if foreign.kept is None:
            remarks.append(f"the class needs {', '.join(family.aside)}: zeros are written. {ASIDE}")
        else:
            own = {n: x for n, x in kept.tensors.items() if not any(a in n for a in family.aside)}
            kept = Kept(tensors={**own, **foreign.kept.tensors}, settings=foreign.kept.settings)
        settings = merged(settings, kept.settings)
        groups += [_kept_group(name, stored) for name, stored in kept.tensors.items()]
    settings = with_lengths(settings, foreign.lengths, family.fields)
    write_tensors(folder, groups)
    _write_json(folder / CONFIG_FILE, settings)
    generation = None
    if model.has_decoder:
        generation = family.id_fields(ids) | generation_config(
            ids, max_target_tokens=max_target_tokens
        )
        _write_json(folder / GENERATION_FILE, generation)
    count = sum(math.prod(array.shape) for array in params.values())
    card = model_card(settings, generation, parameters=count, step=foreign.step)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    if vocabulary is None:
        remarks.append("no tokenizer is written: the checkpoint has no vocabulary")
    else:
        start = None if model.has_encoder else model.config.start_token
        write_tokenizer(
            vocabulary,
            folder,
            max_input_tokens=max_input_tokens,
            start_token=start,
            bos_token=settings.get("bos_token_id"),
            fills_masks=settings["architectures"][0].endswith("ForMaskedLM"),
        )
    _make_readable(folder)
    return remarks


def _groups(
    family: Family,
    written: WrittenModel,
    model: Model,
    params: Mapping[str, LazyArray],
    dtype: np.dtype[Any],
) -> list[TensorGroup]:
    """Returns the tensors of all parameters."""
    by_tensor: dict[str, dict[str, LazyArray]] = {}
    for name in sorted(params, key=family.block_of):
        by_tensor.setdefault(family.tensor_name(model, name), {})[name] = params[name]
    return [_group(family, written, model, arrays, dtype) for arrays in by_tensor.values()]


def _group(
    family: Family,
    written: WrittenModel,
    model: Model,
    arrays: Mapping[str, LazyArray],
    dtype: np.dtype[Any],
) -> TensorGroup:
    """Returns the tensors of some parameters, one or one for each layer.

    Args:
        arrays: the parameters that each of them holds, in the order of their rows.
    """
    first = next(iter(arrays))
    names = family.tensor_names(model, first, arrays[first].shape)
    if first not in written.unprefixed:
        names = [written.prefix + n for n in names]

    def layers_of(name: str) -> list[np.ndarray]:
        whole = arrays[name].load()
        layers = whole if is_stacked(name) else whole[None]
        made = [_as_tensor(family, name, x) for x in layers]
        factor = np.float32(written.factors.get(name, 1.0))
        return made if factor == 1.0 else [x * factor for x in made]

    def make() -> dict[str, np.ndarray]:
        blocks = zip(*map(layers_of, arrays), strict=True)
        whole = [each[0] if len(each) == 1 else np.concatenate(each) for each in blocks]
        return dict(zip(names, whole, strict=True))

    shape = family.tensor_shape(first, arrays[first].shape)
    return TensorGroup(dict.fromkeys(names, shape), make, dtype)


def _kept_group(name: str, stored: StoredArray) -> TensorGroup:
    """Returns a tensor that is written as it is."""
    dtype = stored.read(...).dtype
    return TensorGroup({name: stored.shape}, lambda: {name: stored.read(...)}, dtype)


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _make_readable(folder: pathlib.Path) -> None:
    """Gives files the mode of newly created ones: safetensors creates its own for the owner."""
    os.umask(mask := os.umask(0))
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)
