"""The base of a checkpoint: another one, whose parameters it uses and does not repeat.

Only the record of a base and its checks live here; `stored_checkpoints` reads it.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.records import TEXT, Schema, list_of
from t5lite.models.quantized import KERNEL_SCALE
from t5lite.training.array_checksums import ArrayChecksum
from t5lite.training.trainable import split_by_name

BASE = "base"
BASE_SCHEMA = Schema(
    required={"checkpoint": TEXT, "fingerprint": TEXT, "parameters": list_of(TEXT)}
)
_PARAMS = "params/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """What a checkpoint records of its base.

    Args:
        checkpoint: the directory of the base.
        fingerprint: of its parameters, see `parameters_fingerprint`.
        parameters: the names of those that are used.
    """

    checkpoint: str
    fingerprint: str
    parameters: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Returns it as JSON types."""
        return dataclasses.asdict(self) | {"parameters": list(self.parameters)}

    def without(self, state: Any) -> Any:
        """Returns a state without the parameters of the base, nor the scales of int8 kernels."""
        scales = [f"{name.rpartition('/')[0]}/{KERNEL_SCALE}" for name in self.parameters]
        names = [*self.parameters, *scales]
        return with_params(state, split_by_name(params_of(state), names)[1])


def base_from(about: Mapping[str, Any]) -> Base | None:
    """Returns the base that the description of a checkpoint records; None if it has none."""
    if BASE not in about:
        return None
    fields = about[BASE]
    return Base(**{**fields, "parameters": tuple(fields["parameters"])})


def parameters_fingerprint(arrays: Mapping[str, ArrayChecksum], base: Base | None) -> str:
    """Returns 16 hexadecimal digits that depend on every parameter of a checkpoint.

    Args:
        arrays: the checksums of its own arrays by name; those that are no parameters don't count.
        base: its base.
    """
    content = [
        [name, list(array.shape), array.dtype, array.value]
        for name, array in sorted(arrays.items())
        if name.startswith(_PARAMS)
    ]
    inner = None if base is None else [base.fingerprint, sorted(base.parameters)]
    return hashlib.sha256(json.dumps([content, inner]).encode()).hexdigest()[:16]


def check_found(owner: str, path: pathlib.Path, is_found: bool) -> None:
    """Raises a UserError if a base is not found.

    Args:
        owner: the directory of the checkpoint whose base it is.
    """
    if not is_found:
        raise UserError(
            f"checkpoint {owner} needs its base {path}, which is not found; name its new location "
            "with --base=DIR or, to resume training, as train.initial_checkpoint"
        )


def check_fingerprint(owner: str, base: Base, path: str, fingerprint: str) -> None:
    """Raises a UserError if what is found is another base, with both fingerprints."""
    if fingerprint != base.fingerprint:
        raise UserError(
            f"checkpoint {owner} needs the base with the fingerprint {base.fingerprint}, "
            f"{base.checkpoint}, but {path} has {fingerprint}; name the base it was trained on"
        )


def params_of(item: Any) -> Any:
    """Returns the parameters of a state, or of a part of one as a dict; empty if it has none."""
    return item.get("params", {}) if isinstance(item, Mapping) else item.params


def with_params(item: Any, params: Any) -> Any:
    """Returns the state, or the part of one, with other parameters."""
    if isinstance(item, Mapping):
        others = {name: part for name, part in item.items() if name != "params"}
        return {**others, "params": params} if params else others
    return dataclasses.replace(item, params=params)
