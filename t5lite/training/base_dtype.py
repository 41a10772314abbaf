"""The base of a run with adapters in bfloat16 or int8, while the adapters train.

The base is what neither trains nor belongs to an adapter. Checkpoints do not repeat it, so only the
memory of training changes; other commands read the base as its own checkpoint holds it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.core.patterns import matches
from t5lite.models.adapted_maps import added_names, linear_maps
from t5lite.models.adapters import MapSite
from t5lite.models.model import Model
from t5lite.models.quantized import KERNEL_SCALE, dequantized, quantized
from t5lite.training.base_checkpoint import Base

INT8 = "int8"
BASE_DTYPES = ("bfloat16", INT8)


def base_names(model: Model, names: Sequence[str], trainable: Sequence[str]) -> list[str]:
    """Returns the parameters of the base.

    Args:
        names: of all parameters.
        trainable: patterns of those that train.

    Raises:
        UserError: if there are none.
    """
    added = frozenset(added_names(model))
    found = [name for name in names if name not in added and not matches(name, trainable)]
    if not found:
        raise UserError(
            "train.base_dtype is for parameters that do not train, got train.trainable "
            f"{list(trainable)}, which selects all; bind that of the adapter, or no base_dtype"
        )
    return found


def stored_base(
    model: Model, params: Any, trainable: Sequence[str], base_dtype: str | None
) -> tuple[Any, list[str]]:
    """Returns parameters with the base in its dtype, and the names of the kernels in int8.

    With "int8" these are the kernels of all linear maps but that to logits, each with its scales
    beside it, and the rest of the base is bfloat16.

    Raises:
        UserError: if there is no base, or a pattern of `trainable` matches scales.
    """
    if base_dtype is None:
        return params, []
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    names = base_names(model, list(flat), trainable)
    flat |= {name: flat[name].astype(jnp.bfloat16) for name in names}
    if base_dtype != INT8:
        return flax.traverse_util.unflatten_dict(flat, sep="/"), []
    original = flax.traverse_util.flatten_dict(params, sep="/")
    sites = _sites(model)
    kernels = [name for name in names if name in sites]
    for name in kernels:
        if matches(_scale(name), trainable):
            raise UserError(
                f"train.trainable must not match {_scale(name)}, the scales of an int8 kernel, got "
                f"{list(trainable)}; name the last part whole, as in '.*/ia3_scale'"
            )
        flat |= _quantized(sites[name], name, original[name])
    return flax.traverse_util.unflatten_dict(flat, sep="/"), kernels


def stored_axes(model: Model, axes: Any, kernels: Sequence[str]) -> Any:
    """Returns the names of axes with those of the scales of int8 kernels."""
    flat = flax.traverse_util.flatten_dict(axes, sep="/")
    sites = _sites(model)
    for name in kernels:
        outputs = len(sites[name].outputs)
        stacked = flat[name][: -outputs - len(sites[name].inputs)]
        flat[_scale(name)] = (*stacked, *flat[name][-outputs:])
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def as_in_checkpoints(params: Any) -> Any:
    """Returns parameters with abstract float32 ones instead of int8, and without scales."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    kept = {name: leaf for name, leaf in flat.items() if not name.endswith(f"/{KERNEL_SCALE}")}
    for name, leaf in kept.items():
        if leaf.dtype == jnp.int8:
            kept[name] = jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)
    return flax.traverse_util.unflatten_dict(kept, sep="/")


def from_checkpoint(model: Model, params: Any, wanted: Any) -> Any:
    """Returns restored parameters in the form and with the shardings of the abstract `wanted`."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    abstract = flax.traverse_util.flatten_dict(wanted, sep="/")
    kernels = [name for name, leaf in abstract.items() if leaf.dtype == jnp.int8]
    if not kernels:
        return params
    sites = _sites(model)

    def all_quantized(floats: dict[str, Any]) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        for name, kernel in floats.items():
            parts |= _quantized(sites[name], name, kernel)
        return parts

    names = [part for name in kernels for part in (name, _scale(name))]
    make = jax.jit(all_quantized, out_shardings={name: abstract[name].sharding for name in names})
    flat |= make({name: flat[name] for name in kernels})
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def with_float_kernels(model: Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters by name with the float32 kernels for which int8 kernels stand."""
    kernels = [name for name, kernel in params.items() if kernel.dtype == jnp.int8]
    sites = _sites(model) if kernels else {}
    return dict(params) | {
        name: dequantized(sites[name], params[name], params[_scale(name)]) for name in kernels
    }


def check_left_out(base: Base | None, model: Model, params: Any, trainable: Sequence[str]) -> None:
    """Raises a UserError if checkpoints of a run would contain a part of its base."""
    names = base_names(model, list(by_name(as_in_checkpoints(params))), trainable)
    saved = sorted(set(names) - set(base.parameters if base else ()))
    if saved:
        raise UserError(
            "train.base_dtype needs an initial checkpoint whose own parameters are the whole base, "
            f"got a moving average of {saved[0]}; bind train.base_dtype = None"
        )


def _quantized(site: MapSite, name: str, kernel: Any) -> dict[str, Any]:
    values, scale = quantized(site, kernel)
    return {name: values, _scale(name): scale}


def _scale(kernel: str) -> str:
    return f"{kernel.rpartition('/')[0]}/{KERNEL_SCALE}"


def _sites(model: Model) -> dict[str, MapSite]:
    """Returns the maps whose kernels may be int8, by the names of these."""
    # As in LLM.int8(), the map to logits is none, as errors of logits matter more.
    return {
        f"{name}/kernel": one.site
        for name, one in linear_maps(model).items()
        if not name.endswith("logits_dense")
    }
