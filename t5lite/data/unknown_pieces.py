"""How much of a task's text a vocabulary does not know, and a warning about it."""

import functools
import logging

import numpy as np

from t5lite.data.task import Task

log = logging.getLogger(__name__)

# Records that are counted, from all over the split.
SAMPLE_RECORDS = 500

# A larger fraction of unknown pieces is probably a mistake.
WARN_FRACTION = 0.01


def unknown_fraction(task: Task, split: str, *, max_records: int = SAMPLE_RECORDS) -> float:
    """Returns the fraction of unknown pieces among the tokens of a sample of records."""
    vocabulary = task.vocabulary
    if not vocabulary.has_unknown_pieces:
        return 0.0
    records = task.tokens(split)
    count = min(max_records, len(records))
    numbers = np.unique(np.linspace(0, len(records) - 1, num=count).astype(int))
    texts = [ids for number in numbers for ids in records[int(number)]]
    unknown = sum(int((ids == vocabulary.unknown_id).sum()) for ids in texts)
    return unknown / max(sum(map(len, texts)), 1)


@functools.cache
def _warn(name: str, split: str, fraction: float) -> None:
    log.warning(
        "task %r: %.1f %% of the tokens of split %r are unknown to the vocabulary (<unk>); use a "
        "vocabulary with byte_fallback, or one trained on this text",
        name,
        100 * fraction,
        split,
    )


def warn_of_unknown_pieces(task: Task, split: str) -> None:
    """Logs the fraction of unknown pieces, as a warning if it exceeds `WARN_FRACTION`."""
    fraction = unknown_fraction(task, split)
    if fraction > WARN_FRACTION:
        _warn(task.name, split, fraction)
    elif fraction:
        log.info(
            "task %r: %.2f %% of the tokens of split %r are unknown",
            task.name,
            100 * fraction,
            split,
        )
