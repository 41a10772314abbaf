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
from t5lite.core.lazy import LazyArray, by_name, name_of
from t5lite.training.array_checksums import ArrayChecksum, array_checksums
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.checkpoints import Checkpoints
from t5lite.training.state_reading import is_array
from t5lite.training.stored_checkpoints import StoredCheckpoints

CHUNK_BYTES = 1 << 26


class _LazyHandler(ocp.type_handlers.ArrayHandler):
    """Loads, shards and writes one array at a time, and computes its checksum.

    Args:
        checksums: where the checksums are added, by name.
    """

    def __init__(self, checksums: dict[str, ArrayChecksum]) -> None:
        super().__init__()
        self._checksums = checksums
        self._unfreed_bytes = 0

    async def serialize(
        self, values: Sequence[LazyArray], infos: Sequence[Any], args: Any = None
    ) -> list[Any]:
        for index, (value, info) in enumerate(zip(values, infos, strict=True)):
            host = value.load()
            array = jax.make_array_from_callback(value.shape, value.sharding, host.__getitem__)
            jax.block_until_ready(array)
            del host
            self._checksums |= array_checksums({name_of(info.keypath): array})
            given = ocp.SaveArgs() if args is None else args[index]
            # Arrays are compressed by chunks; one large chunk would need a second copy in memory.
            part = [dataclasses.replace(given, chunk_byte_size=CHUNK_BYTES)]
            for future in await super().serialize([array], [info], part):
                await asyncio.to_thread(future.result)
            self._unfreed_bytes += array.nbytes
            array.delete()
            del array
            # Orbax's futures form reference cycles that keep the arrays' copies on the host.
            if self._unfreed_bytes >= CHUNK_BYTES:
                gc.collect()
                self._unfreed_bytes = 0
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
    checksums: dict[str, ArrayChecksum] = {}
    registry = ocp.type_handlers.create_type_handler_registry((LazyArray, _LazyHandler(checksums)))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    checkpoints = Checkpoints(folder, handler=handler, asynchronous=False)
    try:
        checkpoints.save(step, state, about, checksums)
    finally:
        checkpoints.close()
    return checkpoints.path(step)


def stored_params(
    checkpoints: StoredCheckpoints, step: int, which: str | None = None
) -> dict[str, LazyArray]:
    """Returns the parameters of a checkpoint by name; each is read when it is loaded.

    Args:
        which: see `StoredCheckpoints.param_paths`.
    """
    paths = checkpoints.param_paths(step, which)

    def lazy(name: str, metadata: Any) -> LazyArray:
        def load() -> np.ndarray:
            return checkpoints.restore_array(step, paths[name])

        return LazyArray(tuple(metadata.shape), np.dtype(metadata.dtype), load)

    arrays = by_name(checkpoints.metadata(step)["params"], is_leaf=is_array)
    return {name: lazy(name, metadata) for name, metadata in arrays.items()}
