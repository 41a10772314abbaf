"""The one predicate that answers "is it time?"."""


def due(step: int, *, every: int | None, last: int | None = None) -> bool:
    """Whether something done each `every` steps, and at step `last`, is to be done at `step`.

    >>> [s for s in range(8) if due(s, every=3, last=7)]
    [3, 6, 7]
    >>> [s for s in range(8) if due(s, every=None)]
    []
    """
    if step == last:
        return True
    return every is not None and step > 0 and step % every == 0
