"""Relative position biases of an encoder from those of a decoder, which looks to one side only."""

import dataclasses

import numpy as np

from t5lite.core.lazy import LazyArray
from t5lite.models.config import T5Config
from t5lite.models.relative_bias import relative_position_bucket


def mirrored_bias(bias: LazyArray, config: T5Config) -> LazyArray:
    """Returns the encoder's table [..., heads, buckets], made from the decoder's.

    The encoder has half as many buckets for each side, so its buckets hold more distances: each
    gets the mean of the decoder's bias over them, and both sides get the same.
    """
    weights = mirrored_buckets(config.num_buckets, config.max_distance)

    def load() -> np.ndarray:
        table = bias.load()
        return (table.astype(np.float32) @ weights).astype(table.dtype)

    return dataclasses.replace(bias, load=load)


def mirrored_buckets(num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the share of each bucket of a decoder [old] in each bucket of an encoder [new].

    >>> mirrored_buckets(4, 4)[:, 1].tolist()  # distances -1 to -4
    [0.0, 0.25, 0.25, 0.5]
    """
    distances = np.arange(-max_distance, max_distance + 1)
    new, old = (
        relative_position_bucket(
            side, bidirectional=both, num_buckets=num_buckets, max_distance=max_distance
        )
        for side, both in ((distances, True), (-np.abs(distances), False))
    )
    shares = np.zeros((num_buckets, num_buckets), np.float32)
    np.add.at(shares, (old, new), 1.0)
    # A bucket without distances, such as that of distance 0 to the right, is never read.
    shares[0, shares.sum(axis=0) == 0] = 1.0
    return shares / shares.sum(axis=0)
