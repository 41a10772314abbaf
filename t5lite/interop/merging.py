"""Adapters of a checkpoint merged into its kernels, one map at a time."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.interop.foreign import Foreign
from t5lite.models.adapted_maps import (
    AdaptedMap,
    adapted_maps,
    check_mergeable,
    merged_weights,
    with_adapters,
)
from t5lite.models.adapters import Adapter, MapWeights


def merge_adapters(foreign: Foreign) -> Foreign:
    """Returns a checkpoint without adapters that computes the same.

    Raises:
        UserError: if an adapter cannot be merged.
    """
    for adapter in foreign.model.config.adapters:
        if not isinstance(adapter, Adapter):
            raise UserError(
                f"T5Config.adapters: {adapter} changes no linear map and cannot be merged; write "
                "it with --to=peft, or keep it with --to=t5lite and convert.merge_adapters=False"
            )
    maps = adapted_maps(foreign.model)
    params = dict(foreign.params)
    for name, one in maps.items():
        check_mergeable(one)
        added = {part: params.pop(f"{name}/{part}") for part in one.added}
        own = {part: params[f"{name}/{part}"] for part in one.own}
        for part, array in own.items():
            load = functools.partial(_merged, one, own, added, part)
            params[f"{name}/{part}"] = dataclasses.replace(array, load=load)
    count = len(maps)
    return dataclasses.replace(
        foreign,
        model=with_adapters(foreign.model, ()),
        params=params,
        remarks=(*foreign.remarks, f"the adapters of {count} linear maps are merged"),
    )


def _merged(
    one: AdaptedMap,
    own: Mapping[str, LazyArray],
    added: Mapping[str, LazyArray],
    part: str,
) -> np.ndarray:
    loaded = {name: _float32(array) for name, array in own.items()}
    weights = MapWeights(loaded["kernel"], loaded.get("bias"))
    merge = jax.jit(lambda weights, added: merged_weights(one, weights, added))
    # As exact as the device can: TPUs multiply float32 in bfloat16 otherwise.
    with jax.default_matmul_precision("highest"):
        result = merge(weights, {name: _float32(array) for name, array in added.items()})
    return np.asarray(result.kernel if part == "kernel" else result.bias)


def _float32(array: LazyArray) -> jax.Array:
    return jnp.asarray(array.load(), jnp.float32)
