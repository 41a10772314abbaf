"""The predicate that decides when something periodic is due."""


def due(step: int, *, every: int | None, last: int | None = None) -> bool:
    """Whether something done every `every` steps, and at step `last`, is due at `step`.

    >>> [s for s in range(8) if due(s, every=3, last=7)]
    [3, 6, 7]
    >>> [s for s in range(8) if due(s, every=None)]
    []
    """
    if step == last:
        return True
    return every is not None and step > 0 and step % every == 0
