"""The classes of a model in config.json: how many, their names, and what they are for."""

from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError
from t5lite.interop.family import Settings
from t5lite.interop.foreign import StoredArray
from t5lite.models.classifier import INDEPENDENT, SPAN, Classes

_ONE_CLASS = "single_label_classification"


def read_classes(
    settings: Settings,
    tensors: Mapping[str, StoredArray],
    owner: str,
    *,
    matrix: str,
    per_token: bool,
) -> Classes:
    """Returns the classes of a folder.

    Args:
        settings: config.json.
        owner: the folder, for messages.
        matrix: the name of the tensor that makes the logits.
        per_token: whether every token gets a class.

    Raises:
        UserError: if the matrix is missing, `id2label` names other classes than it has, or the
            model does something else than choosing one class.
    """
    stored = tensors.get(matrix)
    if stored is None or len(stored.shape) != 2:
        raise UserError(
            f"{owner} must hold a matrix {matrix}, got "
            f"{'none' if stored is None else f'shape {stored.shape}'}"
        )
    count = stored.shape[0]
    purpose = settings.get("problem_type")
    if purpose not in (None, _ONE_CLASS) or count < 2:
        raise UserError(
            f"{owner}/config.json: problem_type must be {_ONE_CLASS!r} with two classes or more, "
            f"got {purpose!r} with {count}; t5lite has no loss for it"
        )
    labels = settings.get("id2label")
    if labels is None:
        return Classes(count=count, per_token=per_token)
    names = _names(labels)
    if names is None or len(names) != count or len(set(names)) != count:
        raise UserError(
            f"{owner}/config.json: id2label must name the {count} classes of {matrix} by their "
            f"numbers, got {labels!r:.80}"
        )
    # What transformers writes for classes without names.
    is_usual = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return Classes(count=count, per_token=per_token, names=() if is_usual else names)


def _names(labels: Any) -> list[str] | None:
    if not isinstance(labels, Mapping):
        return None
    found = (labels.get(str(number)) for number in range(len(labels)))
    names = [name for name in found if isinstance(name, str)]
    return names if len(names) == len(labels) else None


def label_settings(classes: Classes | None, *, has_spans: bool = False) -> dict[str, Any]:
    """Returns the fields of config.json that name classes.

    Args:
        has_spans: whether the family has models of spans; their two classes have no names.

    Raises:
        UserError: for classes that depend on each other.
    """
    if classes is None or (has_spans and classes.structure == SPAN):
        return {}
    if classes.structure != INDEPENDENT:
        raise UserError(
            "--to=huggingface: transformers has no counterpart of Classes.structure "
            f"{classes.structure!r}; keep the checkpoint in t5lite's format"
        )
    names = classes.names or [f"LABEL_{number}" for number in range(classes.count)]
    return {
        "num_labels": classes.count,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": None if classes.per_token else _ONE_CLASS,
    }
