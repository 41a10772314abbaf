"""AdaLoRA in PEFT's files, which hold no row of a factor whose singular value was removed.

Source: huggingface/peft@v0.21.2:src/peft/tuners/adalora/model.py, resize_modules_by_rank_pattern.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from t5lite.core.errors import UserError
from t5lite.interop.foreign import Rows, StoredArray
from t5lite.models.adalora import ADALORA_DOWN, ADALORA_UP, ADALORA_VALUES

# PEFT's names of the parameters, which end in no `.weight`.
ADALORA_PARTS = {"lora_A": ADALORA_DOWN, "lora_E": ADALORA_VALUES, "lora_B": ADALORA_UP}
# The axis of the rank in PEFT's tensors.
_RANK_AXIS = {ADALORA_DOWN: 0, ADALORA_VALUES: 0, ADALORA_UP: 1}


def with_removed(
    parts: Mapping[str, StoredArray], config: Mapping[str, Any], module: str, owner: str
) -> dict[str, StoredArray]:
    """Returns the tensors of a layer of a map with zeros where singular values were removed.

    Args:
        config: adapter_config.json, whose `rank_pattern` names what was removed.
        module: of Hugging Face.
        owner: the file of the configuration, for messages.

    Raises:
        UserError: if the pattern is not a list of `init_r` truth values, or does not fit a tensor.
    """
    patterns = config.get("rank_pattern") or {}
    pattern = patterns.get(f"{module}.lora_E") if isinstance(patterns, Mapping) else patterns
    if pattern is None:
        return dict(parts)
    count = config["init_r"]
    if not isinstance(pattern, list) or [type(x) for x in pattern] != [bool] * count:
        raise UserError(
            f"{owner}: rank_pattern must have {count} truth values (init_r) for {module}, got "
            f"{pattern}"
        )
    kept = np.flatnonzero(pattern)
    for part, stored in parts.items():
        axis = _RANK_AXIS[part]
        if len(stored.shape) != 2 or stored.shape[axis] != len(kept):
            raise UserError(
                f"{owner}: rank_pattern keeps {len(kept)} of {module}, got a tensor of shape "
                f"{stored.shape}"
            )
    return {part: _padded(stored, kept, count, _RANK_AXIS[part]) for part, stored in parts.items()}


def _padded(stored: StoredArray, kept: np.ndarray, count: int, axis: int) -> StoredArray:
    shape = (count, stored.shape[1]) if axis == 0 else (stored.shape[0], count)

    def read(rows: Rows) -> np.ndarray:
        whole = np.zeros(shape, np.float32)
        # The format has no slices of empty tensors.
        if len(kept):
            index = (kept, slice(None)) if axis == 0 else (slice(None), kept)
            whole[index] = stored.read(...)
        return whole[rows]

    return StoredArray(shape, stored.dtype, read, reads_rows=False)
