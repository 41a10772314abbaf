"""Numbers about text, to hold a model's loss against."""

import numpy as np

from t5lite.data.task import Task


def unigram_entropy(task: Task, split: str) -> float:
    """Returns the entropy of the split's token frequencies, in nats per token.

    It is the least cross-entropy of a model that knows how frequent each token is, and nothing of
    its neighbours. For a byte vocabulary it is the entropy of the byte distribution.
    """
    counts = np.zeros(task.vocabulary.size, np.int64)
    records = task.tokens(split)
    for number in range(len(records)):
        # The targets of a pair; the text itself where that is all.
        *_, tokens = records[number] or (np.zeros(0, np.int32),)
        counts += np.bincount(tokens, minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))
