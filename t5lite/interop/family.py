"""What a family of Hugging Face models defines: names, shapes and settings, both ways."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5lite.interop.field_groups import FieldGroups
from t5lite.interop.foreign import ArrayShape, Kept, StoredArray, is_stacked, matrix_shape
from t5lite.interop.generation_settings import T5_IDS, SpecialIds, id_settings
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
        usual_kept: what the class needs besides the model, unless the checkpoint kept its own.
        remarks: what a user should know.
    """

    settings: dict[str, Any]
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    skipped: frozenset[str] = frozenset()
    prefix: str = ""
    unprefixed: frozenset[str] = frozenset()
    usual_kept: Kept | None = None
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models of Hugging Face. A row of `families.FAMILIES` registers it.

    Args:
        fields: what each field of config.json means.
        read: from config.json, the stored tensors and the folder's name for messages to the model.
        write: from a model and a dtype to how it is written; raises a UserError for a model that
            transformers has no class for.
        tensor_name: the tensor of a parameter of a model, with `{layer}` if each layer has one.
        is_transposed: whether the tensors of a parameter are the transposes of its matrices.
        block_of: which of how many equal blocks of its tensors' rows a parameter is.
        roots: the first parts of the names of tensors.
        prefix: is before these roots in files of the family.
        unused: tensors that files may hold and no model reads.
        aside: the names of parts whose tensors no model has, such as `vision_tower.`.
        keep: from config.json and these tensors to what is kept; None if it is left out.
        usual_ids: the special ids where files have none.
        flat_ids: from config.json to one that holds `vocab_size` and the special ids where T5's
            does; `generation_settings` reads it.
        id_fields: from special ids to the fields of config.json and generation_config.json.
        id_parts: the configurations inside of config.json that have these fields, too.
    """

    fields: FieldGroups
    read: Callable[[Settings, dict[str, StoredArray], str], ReadModel]
    write: Callable[[Model, str], WrittenModel]
    tensor_name: Callable[[Model, str], str]
    is_transposed: Callable[[str], bool]
    roots: frozenset[str]
    block_of: Callable[[str], tuple[int, int]] = lambda name: (0, 1)
    prefix: str = ""
    unused: frozenset[str] = frozenset()
    aside: tuple[str, ...] = ()
    keep: Callable[[Settings, dict[str, StoredArray]], Kept | None] | None = None
    usual_ids: Settings = dataclasses.field(default_factory=T5_IDS.copy)
    flat_ids: Callable[[Settings], Settings] = lambda settings: settings
    id_fields: Callable[[SpecialIds], dict[str, Any]] = id_settings
    id_parts: frozenset[str] = frozenset()

    def tensor_names(self, model: Model, name: str, shape: ArrayShape) -> list[str]:
        """Returns the tensors of a parameter: one, or one for each of the last layers."""
        pattern = self.tensor_name(model, name)
        if not is_stacked(name):
            return [pattern]
        count = getattr(model.config, f"num_{name.partition('/')[0]}_layers")
        return [pattern.format(layer=layer) for layer in range(count - shape[0], count)]

    def tensor_shape(self, name: str, shape: ArrayShape) -> ArrayShape:
        """Returns the shape of each tensor of a parameter."""
        matrix = matrix_shape(name, shape[1:] if is_stacked(name) else shape)
        rows, *rest = matrix[::-1] if self.is_transposed(name) else matrix
        return (rows * self.block_of(name)[1], *rest)
