"""Scores of pairs of classes, which a model has and a loss reads."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Transitions(NamedTuple):
    """Scores of the classes of a chain, which are added to its logits.

    Args:
        pairs: of each class and the one after it.
        first, last: of the class that a chain begins or ends with.
    """

    pairs: Float[Array, "v following_v"]
    first: Float[Array, "v"]
    last: Float[Array, "v"]
