"""`checkpoints/good.json`: which checkpoints proved good, and every return to one of them.

A checkpoint is good once a step from its parameters, or an evaluation of them, was finite. What is
skipped after a return is part of the run: it resumes with the same batches.
"""

import dataclasses
import json
import pathlib

from t5lite.core.files import write_atomically
from t5lite.core.records import TEXT, Schema, integer, list_of, read_document

GOOD_FILE = "good.json"
REMEDY = (
    "restore it from a copy, or delete it: the run then resumes from its latest checkpoint, and "
    "forgets which batches it skips"
)

_RETURN_SCHEMA = Schema(
    required={
        "from_step": integer(0),
        "to_step": integer(0),
        "data_seed": integer(0),
        "first_batch": integer(1),
        "last_batch": integer(0),
        "reason": TEXT,
    },
    others=None,
)
HISTORY_SCHEMA = Schema(
    required={"good": list_of(integer(0)), "returns": list_of(_RETURN_SCHEMA.kind)}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Return:
    """A return to a good checkpoint.

    Args:
        from_step: the step at which the run diverged.
        to_step: of the checkpoint.
        data_seed: of the order in which batches are numbered.
        first_batch, last_batch: the batches that are skipped.
        reason: why the run returned.
    """

    from_step: int
    to_step: int
    data_seed: int
    first_batch: int
    last_batch: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """What a run knows of its checkpoints.

    Args:
        good: steps of checkpoints that proved good, in order; some may be deleted since. The step
            that the run started with is that of its initial state.
        returns: in order.
    """

    good: tuple[int, ...] = ()
    returns: tuple[Return, ...] = ()

    def skipped(self, data_seed: int) -> list[tuple[int, int]]:
        """Returns pairs (first, last) of batches that are skipped in the order of a seed."""
        return [
            (each.first_batch, each.last_batch)
            for each in self.returns
            if each.data_seed == data_seed
        ]


def read_history(folder: pathlib.Path) -> History:
    """Returns the history in a folder of checkpoints; an empty one if there is no file.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        fields = read_document(folder / GOOD_FILE, HISTORY_SCHEMA, REMEDY)
    except FileNotFoundError:
        return History()
    returns = tuple(Return(**each) for each in fields["returns"])
    return History(good=tuple(fields["good"]), returns=returns)


def write_history(folder: pathlib.Path, history: History) -> None:
    """Replaces the history in a folder of checkpoints."""
    write_atomically(folder / GOOD_FILE, json.dumps(dataclasses.asdict(history), indent=1) + "\n")


def add_good(folder: pathlib.Path, step: int) -> None:
    """Records that the checkpoint of a step proved good."""
    history = read_history(folder)
    if step not in history.good:
        good = tuple(sorted({*history.good, step}))
        write_history(folder, dataclasses.replace(history, good=good))
