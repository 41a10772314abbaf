"""Adapters of PEFT: adapter_config.json and adapter_model.safetensors, read and written.

Source: huggingface/peft@v0.21.2:src/peft/utils/save_and_load.py.
"""

import json
import math
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from t5lite.core.errors import UserError, shown
from t5lite.core.lazy import LazyArray
from t5lite.interop.families import family_to_write
from t5lite.interop.foreign import Foreign, StoredArray, check_array
from t5lite.interop.peft_adalora import ADALORA_PARTS, with_removed
from t5lite.interop.peft_config import (
    ADALORA_TYPE,
    IA3_TYPE,
    LORA_TYPE,
    PROMPT_TYPES,
    adalora_of,
    adapter_settings,
    common_settings,
    lora_of,
    read_adapter_config,
)
from t5lite.interop.peft_prompts import PromptAdapter, read_prompt, write_prompt
from t5lite.interop.tensor_files import read_json, tensors_of
from t5lite.models.adalora import ADALORA_VALUES, AdaLoRA
from t5lite.models.adapted_maps import AdaptedMap, adapted_maps, linear_maps, with_adapters
from t5lite.models.adapters import Adapter
from t5lite.models.ia3 import IA3
from t5lite.models.lora import PISSA, LoRA
from t5lite.models.model import Model

PEFT_CONFIG_FILE = "adapter_config.json"
PEFT_TENSOR_FILE = "adapter_model.safetensors"
_HOW_TO_LOAD = "load it with peft.PeftModel.from_pretrained(base, the output)"
_ROOT = "base_model.model."
_LORA_PARTS = {"lora_A.weight": "lora_down", "lora_B.weight": "lora_up"}
_MAGNITUDE = {"lora_magnitude_vector": "lora_magnitude"}
_SCALE = {"ia3_l": "ia3_scale"}
_PARTS = {
    LORA_TYPE: {**_LORA_PARTS, **_MAGNITUDE},
    ADALORA_TYPE: ADALORA_PARTS,
    IA3_TYPE: _SCALE,
}


def is_peft(path: pathlib.Path) -> bool:
    """Returns whether a path is a folder of an adapter of PEFT, without a whole model."""
    return (path / PEFT_CONFIG_FILE).is_file() and not (path / "config.json").is_file()


def module_names(model: Model) -> dict[str, str]:
    """Returns the module of Hugging Face of each linear map, with `{layer}` if layers are stacked.

    Maps whose tensors hold other maps too, or are no transposed matrices, are left out.
    """
    family = family_to_write(model)
    written = family.write(model, "float32")
    names: dict[str, str] = {}
    for name in linear_maps(model):
        kernel = f"{name}/kernel"
        is_plain = family.is_transposed(kernel) and family.block_of(kernel) == (0, 1)
        if not is_plain or kernel in written.factors or kernel in written.skipped:
            continue
        prefix = "" if kernel in written.unprefixed else written.prefix
        names[name] = prefix + family.tensor_name(model, kernel).removesuffix(".weight")
    return names


def read_peft(
    folder: pathlib.Path, base: Model, ignore_fields: Collection[str] = ()
) -> tuple[Adapter | PromptAdapter, dict[str, LazyArray]]:
    """Returns the adapter in a folder, and its parameters by t5lite's names.

    Args:
        base: the model that it adapts.
        ignore_fields: unknown fields of its configuration that change nothing.

    Raises:
        UserError: if a file is missing or damaged, for an unknown type, module or field, or tensors
            that do not fit the base.
    """
    owner = f"{folder}/{PEFT_CONFIG_FILE}"
    if base.config.adapters:
        raise UserError(f"--base of {folder} must have no adapters; merge them with t5lite convert")
    config = read_json(folder / PEFT_CONFIG_FILE)
    kind = read_adapter_config(config, owner, ignore_fields)
    path = folder / PEFT_TENSOR_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; save the adapter with safe_serialization=True")
    if kind in PROMPT_TYPES:
        return read_prompt(kind, config, tensors_of(path), base, str(path))
    found = _by_map(tensors_of(path), _PARTS[kind], base, str(path))
    adapter: LoRA | AdaLoRA | IA3
    if kind == IA3_TYPE:
        adapter = _read_ia3(found, str(path))
    elif kind == ADALORA_TYPE:
        adapter = adalora_of(config, _exactly(found), owner)
        modules = module_names(base)
        for name, layers in found.items():
            for layer, parts in layers.items():
                module = modules[name].format(layer=layer)
                layers[layer] = with_removed(parts, config, module, owner)
    else:
        parts_of_first = next(iter(next(iter(found.values())).values()))
        shape = next(iter(parts_of_first.values())).shape
        if "lora_down" in parts_of_first:
            shape = parts_of_first["lora_down"].shape
        adapter = lora_of(config, _exactly(found), shape[0] if shape else 0, owner)
    return adapter, _parameters(adapter, base, found, str(path))


def _exactly(names: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(re.escape(name) for name in names))


# The tensors of a map by layer and by the name of the parameter; layer 0 if it has no layers.
_Layers = dict[int, dict[str, StoredArray]]


def _by_map(
    tensors: Mapping[str, StoredArray], parts: Mapping[str, str], base: Model, owner: str
) -> dict[str, _Layers]:
    """Returns the tensors by the full name of their map."""
    patterns = {
        name: re.compile(re.escape(module).replace(r"\{layer\}", r"(\d+)"))
        for name, module in module_names(base).items()
    }
    found: dict[str, _Layers] = {}
    for tensor, stored in tensors.items():
        part = next((p for p in parts if tensor.endswith(f".{p}")), None)
        module = tensor.removeprefix(_ROOT).removesuffix(f".{part}")
        matched = ((name, pattern.fullmatch(module)) for name, pattern in patterns.items())
        name, match = next(((n, m) for n, m in matched if m), (None, None))
        if part is None or name is None or match is None or not tensor.startswith(_ROOT):
            raise UserError(
                f"{owner} holds {shown(tensor)}, which is no {' or '.join(parts)} of a linear map "
                "of its base; check that --base is the model it was trained on"
            )
        layer = int(match[1]) if match.groups() else 0
        found.setdefault(name, {}).setdefault(layer, {})[parts[part]] = stored
    if not found:
        raise UserError(f"{owner} holds no tensors")
    return found


def _read_ia3(found: Mapping[str, _Layers], owner: str) -> IA3:
    inputs = set()
    for name, layers in found.items():
        shapes = {stored.shape for parts in layers.values() for stored in parts.values()}
        if any(len(shape) != 2 or 1 not in shape for shape in shapes) or len(shapes) != 1:
            raise UserError(f"{owner}: ia3_l of {name} must be (n, 1) or (1, n), got {shapes}")
        if next(iter(shapes))[0] == 1:
            inputs.add(name)
    return IA3(targets=_exactly(found.keys() - inputs), input_targets=_exactly(inputs))


def _parameters(
    adapter: LoRA | AdaLoRA | IA3, base: Model, found: Mapping[str, _Layers], owner: str
) -> dict[str, LazyArray]:
    """Returns the parameters of an adapter whose targets are all that is found."""
    model = with_adapters(base, (adapter,))
    params: dict[str, LazyArray] = {}
    modules = module_names(base)
    for name, one in adapted_maps(model).items():
        count = one.own["kernel"].value.shape[0] if one.stacked_layers else 1
        stack = name.partition("/")[0]
        last = getattr(base.config, f"num_{stack}_layers") if one.stacked_layers else 1
        layers = range(last - count, last)
        if extra := sorted(set(found[name]) - set(layers)):
            raise UserError(
                f"{owner} holds layer {extra[0]} of {modules[name]}, of which --base has "
                f"{layers.start} to {last - 1}; name the base it was trained on"
            )
        if others := {part for parts in found[name].values() for part in parts} - set(one.added):
            raise UserError(
                f"{owner} holds {sorted(others)[0]} of {modules[name]}, which its use_dora excludes"
            )
        for part, box in one.added.items():
            stored = []
            for layer in layers:
                own = found[name].get(layer, {}).get(part)
                if own is None:
                    raise UserError(
                        f"{owner} must hold {part} of every layer of {modules[name]}, got none of "
                        f"layer {layer}; merge the adapter with peft"
                    )
                check_array(owner, f"{name}/{part}", _tensor_shape(one, part), own)
                stored.append(own)
            shape = tuple(box.value.shape)
            params[f"{name}/{part}"] = _gathered(one, part, shape, stored)
    return params


def _sizes(one: AdaptedMap) -> tuple[int, int]:
    """Returns the numbers of inputs and of outputs of a map."""
    inputs, outputs = (
        math.prod(axis.size for axis in axes) for axes in (one.site.inputs, one.site.outputs)
    )
    return inputs, outputs


def _rank(one: AdaptedMap) -> int:
    (adapter,) = one.adapters
    assert isinstance(adapter, LoRA | AdaLoRA)
    return adapter.rank


def _tensor_shape(one: AdaptedMap, part: str) -> tuple[int, ...]:
    """Returns the shape of PEFT's tensor of a parameter of one layer."""
    inputs, outputs = _sizes(one)
    if part == "ia3_scale":
        (adapter,) = one.adapters
        assert isinstance(adapter, IA3)
        return (1, inputs) if adapter.scales_inputs(one.site.name) else (outputs, 1)
    if part == "lora_magnitude":
        return (outputs,)
    if part == ADALORA_VALUES:
        return (_rank(one), 1)
    return (_rank(one), inputs) if part.endswith("_down") else (outputs, _rank(one))


def _gathered(
    one: AdaptedMap, part: str, shape: tuple[int, ...], stored: list[StoredArray]
) -> LazyArray:
    def load() -> np.ndarray:
        is_matrix = part in _LORA_PARTS.values()
        layers = [array.read(...).astype(np.float32) for array in stored]
        made = [layer.T if is_matrix else layer for layer in layers]
        return np.ascontiguousarray(np.stack(made)).reshape(shape)

    return LazyArray(shape, np.dtype(np.float32), load)


def write_peft(foreign: Foreign, folder: pathlib.Path, base_name: str | None) -> list[str]:
    """Writes the adapter of a checkpoint alone, and returns remarks.

    Args:
        base_name: of the base model of Hugging Face, for adapter_config.json.

    Raises:
        UserError: for a model without adapters, with several, or with one that PEFT has no
            counterpart of.
    """
    model = foreign.model
    adapters = model.config.adapters
    if len(adapters) != 1 or model.classes is not None:
        raise UserError(
            f"--to=peft writes one adapter of a model without classes, got {len(adapters)} of "
            f"{type(model).__name__}; merge them with --to=huggingface"
        )
    if isinstance(adapters[0], PromptAdapter):
        settings, tensors, remarks = write_prompt(foreign)
        _write_files(folder, {**settings, **common_settings(model, base_name)}, tensors)
        return [*remarks, _HOW_TO_LOAD]
    maps = adapted_maps(model)
    known = module_names(with_adapters(model, ()))
    if other := sorted(maps.keys() - known.keys()):
        raise UserError(f"--to=peft: {other[0]} has no module of its own in transformers")
    modules: dict[str, str] = {}
    tensors = {}
    for name, one in maps.items():
        loaded = {part: foreign.params[f"{name}/{part}"].load() for part in one.added}
        count = len(next(iter(loaded.values()))) if one.stacked_layers else 1
        stack = name.partition("/")[0]
        last = getattr(model.config, f"num_{stack}_layers") if one.stacked_layers else 1
        for index in range(count):
            module = known[name].format(layer=last - count + index)
            modules[module] = name
            layer = {p: x[index] if one.stacked_layers else x for p, x in loaded.items()}
            made = _tensors_of_layer(one, {p: np.asarray(x, np.float32) for p, x in layer.items()})
            tensors |= {f"{_ROOT}{module}.{key}": value for key, value in made.items()}
    settings = adapter_settings(adapters[0], model, modules, base_name)
    _write_files(folder, settings, tensors)
    return [_HOW_TO_LOAD]


def _write_files(
    folder: pathlib.Path, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    import safetensors.numpy

    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / PEFT_CONFIG_FILE).write_text(text, encoding="utf-8")
    safetensors.numpy.save_file(dict(tensors), folder / PEFT_TENSOR_FILE, metadata={"format": "pt"})
    for path in folder.iterdir():
        # safetensors creates its file for the owner alone.
        path.chmod((folder / PEFT_CONFIG_FILE).stat().st_mode)


def _tensors_of_layer(one: AdaptedMap, parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns PEFT's tensors of one layer of a map, by the last part of their names."""
    inputs, outputs = _sizes(one)
    if "ia3_scale" in parts:
        return {"ia3_l": parts["ia3_scale"].reshape(_tensor_shape(one, "ia3_scale"))}
    rank = _rank(one)
    down = parts["lora_down"].reshape(inputs, rank)
    up = parts["lora_up"].reshape(rank, outputs)
    (adapter,) = one.adapters
    if isinstance(adapter, AdaLoRA):
        values = parts[ADALORA_VALUES].reshape(rank, 1)
        return {"lora_A": np.ascontiguousarray(down.T), "lora_E": values, "lora_B": up.T.copy()}
    assert isinstance(adapter, LoRA)
    if adapter.initialization == PISSA:
        down = np.concatenate([down, parts["lora_initial_down"].reshape(inputs, rank)], axis=1)
        up = np.concatenate([up, -parts["lora_initial_up"].reshape(rank, outputs)], axis=0)
    made = {"lora_A.weight": np.ascontiguousarray(down.T), "lora_B.weight": up.T.copy()}
    if "lora_magnitude" in parts:
        made["lora_magnitude_vector"] = parts["lora_magnitude"].reshape(outputs)
    return made
