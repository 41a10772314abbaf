"""Checkpoints written and read array by array, for models that do not fit into memory."""

import asyncio
import dataclasses
import gc
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray, by_name
from t5lite.training.checkpoints import FOLDER, Checkpoints

CHUNK_BYTES = 1 << 26


class _LazyHandler(ocp.type_handlers.ArrayHandler):
    """Loads, shards and writes one array at a time."""

    async def serialize(
        self, values: Sequence[LazyArray], infos: Sequence[Any], args: Any = None
    ) -> list[Any]:
        for index, (value, info) in enumerate(zip(values, infos, strict=True)):
            host = value.load()
            array = jax.make_array_from_callback(value.shape, value.sharding, host.__getitem__)
            jax.block_until_ready(array)
            del host
            given = ocp.SaveArgs() if args is None else args[index]
            # Arrays are compressed by chunks; one large chunk would need a second copy in memory.
            part = [dataclasses.replace(given, chunk_byte_size=CHUNK_BYTES)]
            for future in await super().serialize([array], [info], part):
                await asyncio.to_thread(future.result)
            array.delete()
            # Orbax's futures form reference cycles that keep the array's copy on the host.
            del array
            gc.collect()
        return []

    def memory_size(self, values: Sequence[LazyArray]) -> list[tuple[int, int]]:
        # Nothing is in memory yet, so limits on concurrent writes do not apply.
        return [(0, 0)] * len(values)


def write_lazily(model_dir: pathlib.Path, step: int, state: Any, about: Mapping[str, Any]) -> str:
    """Writes `model_dir/checkpoints/STEP` from a tree of `LazyArray`s, and returns its directory.

    Raises:
        UserError: if it exists, or cannot be written.
    """
    folder = (model_dir / FOLDER).absolute()
    if (folder / str(step)).exists():
        raise UserError(f"{folder / str(step)} exists; name another directory")
    registry = ocp.type_handlers.create_type_handler_registry((LazyArray, _LazyHandler()))
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "about": ocp.JsonCheckpointHandler(),
    }
    checkpoints = Checkpoints(folder, handlers=handlers, asynchronous=False)
    try:
        checkpoints.save(step, state, about)
    finally:
        checkpoints.close()
    return checkpoints.path(step)


def stored_params(checkpoints: Checkpoints, step: int) -> dict[str, LazyArray]:
    """Returns the parameters of a checkpoint by name; each is read when it is loaded."""

    def lazy(name: str, metadata: Any) -> LazyArray:
        def load() -> np.ndarray:
            return checkpoints.restore_array(step, f"params/{name}")

        return LazyArray(tuple(metadata.shape), np.dtype(metadata.dtype), load)

    arrays = by_name(checkpoints.metadata(step)["params"], is_leaf=lambda x: hasattr(x, "shape"))
    return {name: lazy(name, metadata) for name, metadata in arrays.items()}
