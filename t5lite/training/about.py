"""The schema of `about`, the JSON description that a checkpoint carries beside its state.

`restore.about_checkpoint` writes it for a run, `convert` for a converted checkpoint.
"""

from typing import Any

from t5lite.core.records import (
    ANYTHING,
    NUMBER,
    OBJECT,
    TEXT,
    Kind,
    Schema,
    decode_record,
    integer,
    list_of,
    object_of,
    or_null,
)
from t5lite.training.base_checkpoint import BASE, BASE_SCHEMA

# The lengths that limit a converted model in other programs; see `interop/lengths.py`.
LENGTHS = "lengths"

_INTEGER = Kind("an integer", lambda value: type(value) is int)
_INTEGERS = list_of(integer(0))


def _is_cursor(value: Any) -> bool:
    # Version 0.1 had another name for `positions`, with the same rank in alphabetical order.
    kinds = (integer(0), list_of(_INTEGERS), _INTEGERS)
    return (
        isinstance(value, dict)
        and len(value) == len(kinds)
        and all(kind.holds(value[name]) for kind, name in zip(kinds, sorted(value), strict=True))
    )


_ADAPTER = Schema(required={"adapter": TEXT, "fields": OBJECT})
_MODEL = Schema(
    required={
        "architecture": TEXT,
        "config": Schema(optional={"adapters": list_of(_ADAPTER.kind)}).kind,
    },
    optional={"classes": OBJECT},
)
_VOCABULARY = Schema(required={"kind": TEXT}, optional={"path": TEXT})
_DATA = Schema(
    required={
        "about": Schema(required={"data_seed": ANYTHING}).kind,
        "batches": integer(0),
        "skip_batches": list_of(_INTEGERS),
        "rows": list_of(Kind("the position of a row", _is_cursor)),
    }
)
_FROZEN = Schema(required={"checkpoint": TEXT, "fingerprint": TEXT})
_IMPROVEMENTS = Schema(
    required={"best": or_null(NUMBER), "best_step": integer(0), "evaluations_since": integer(0)}
)
ABOUT_SCHEMA = Schema(
    optional={
        "model": _MODEL.kind,
        "vocabulary": or_null(_VOCABULARY.kind),
        "vocabulary_fingerprint": or_null(TEXT),
        "seed": _INTEGER,
        "rank": or_null(NUMBER),
        "trainable": list_of(TEXT),
        "frozen": object_of(_FROZEN.kind),
        "data": _DATA.kind,
        "improvements": _IMPROVEMENTS.kind,
        BASE: BASE_SCHEMA.kind,
        LENGTHS: OBJECT,
    }
)


def decode_about(text: bytes) -> dict[str, Any]:
    """Returns the description that a checkpoint carries.

    Raises:
        ValueError: if it does not match the schema, or has data without the seed of its run or the
            position of a row.
    """
    about = decode_record(text, ABOUT_SCHEMA)
    if "data" in about:
        if "seed" not in about:
            raise ValueError("must have the field 'seed'")
        rows = len(about["data"]["rows"])
        if rows != (wanted := about["data"]["about"].get("batch_size", rows)):
            raise ValueError(f"must have the positions of {wanted} rows, got {rows}")
    return about
