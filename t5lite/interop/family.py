"""What a family of Hugging Face models defines: names, shapes and settings, both ways."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5lite.interop.foreign import ArrayShape, StoredArray, is_stacked, matrix_shape
from t5lite.models.model import Model

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadModel:
    """A model that was recognised in a folder.

    Args:
        model: the model.
        tensors: the stored tensors under the names that the family gives to the parameters.
        remarks: what a user should know.
    """

    model: Model
    tensors: Mapping[str, StoredArray]
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenModel:
    """How a model is written.

    Args:
        settings: the content of config.json.
        factors: numbers that tensors are multiplied by, by parameter.
        skipped: parameters that are not written.
        prefix: begins the names of the tensors, except those in `unprefixed`.
        unprefixed: parameters whose tensors have no prefix.
        remarks: what a user should know.
    """

    settings: dict[str, Any]
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    skipped: frozenset[str] = frozenset()
    prefix: str = ""
    unprefixed: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models of Hugging Face. A row of `families.FAMILIES` registers it.

    Args:
        read: from config.json, the stored tensors and the folder's name for messages to the model.
        write: from a model and a dtype to how it is written; raises a UserError for a model that
            transformers has no class for.
        tensor_name: the tensor of a parameter of a model, with `{layer}` if each layer has one.
        is_transposed: whether the tensors of a parameter are the transposes of its matrices.
        unused: tensors that files may hold and no model reads.
    """

    read: Callable[[Settings, dict[str, StoredArray], str], ReadModel]
    write: Callable[[Model, str], WrittenModel]
    tensor_name: Callable[[Model, str], str]
    is_transposed: Callable[[str], bool]
    unused: frozenset[str] = frozenset()

    def tensor_names(self, model: Model, name: str, shape: ArrayShape) -> list[str]:
        """Returns the tensors of a parameter: one, or one for each layer."""
        pattern = self.tensor_name(model, name)
        layers = range(shape[0]) if is_stacked(name) else range(1)
        return [pattern.format(layer=layer) for layer in layers]

    def tensor_shape(self, name: str, shape: ArrayShape) -> ArrayShape:
        """Returns the shape of each tensor of a parameter."""
        matrix = matrix_shape(name, shape[1:] if is_stacked(name) else shape)
        return matrix[::-1] if self.is_transposed(name) else matrix
