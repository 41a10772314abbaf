"""How much of a task's text a vocabulary does not know, and a warning about it."""

import functools
import logging

import numpy as np

from t5lite.data.task import Task

log = logging.getLogger(__name__)

# Counting stops after this many records or tokens, so that a run starts quickly.
SAMPLE_RECORDS = 500
SAMPLE_TOKENS = 200_000

# A larger fraction of unknown pieces is probably a mistake.
WARN_FRACTION = 0.01


def unknown_fraction(task: Task, split: str) -> float:
    """Returns the fraction of unknown pieces among the tokens of a sample of records."""
    vocabulary = task.vocabulary
    if not vocabulary.has_unknown_pieces:
        return 0.0
    records = task.tokens(split)
    order = np.random.default_rng(0).permutation(len(records))
    unknown = 0
    tokens = 0
    for number in order[:SAMPLE_RECORDS]:
        texts = records[int(number)]
        # The text of a dialogue comes with weights.
        for ids in texts if task.takes_pairs else texts[:1]:
            unknown += int((ids == vocabulary.unknown_id).sum())
            tokens += len(ids)
        if tokens >= SAMPLE_TOKENS:
            break
    return unknown / max(tokens, 1)


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
