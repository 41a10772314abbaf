"""Which keys a query may attend to, as data.

An attention implementation receives an `AttentionMask` and decides itself how to use it: the
reference implementation materialises it, others build it one block of keys at a time (`keys`) or
hand its fields to a kernel.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# Positions of tokens, one for each query or key, the same in all rows of a batch.
Positions = Any
# Fields of a mask with an axis of keys, and which of their axes it is.
_KEY_AXES = {
    "key_segment_ids": 1,
    "key_prefix": 1,
    "memory_keys": 0,
    "shared_keys": 0,
    "visible": 3,
}
# How many tokens to the left and to the right of itself a query may attend to; None is no limit.
Window = tuple[int, int]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionMask:
    """A query may attend to a key if every field that is set allows it.

    Args:
        query_segment_ids: the example in a packed row that each query belongs to, int [b, q].
        key_segment_ids: of each key, int [b, k]; 0 is padding, which no query attends to. Both or
            neither are set.
        query_positions, key_positions: int [q] and [k]; None is 0, 1, 2, ...
        query_prefix, key_prefix: 1 for tokens of a prefix, int [b, q] and [b, k]. Tokens of a
            prefix attend to each other in both directions despite `causal`.
        memory_keys: True for keys that are no tokens of the queries' sequence, bool [k], such as
            encoder states that self-attention also reads (merged attention): `causal` and `window`
            do not apply to them.
        shared_keys: True for keys that every query attends to, whatever the other fields say, bool
            [k], such as those of a prefix of all examples.
        visible: an explicit mask, bool [#b, 1, q, k], for what no rule expresses.
        causal: whether a query attends to no key at a later position.
        window: how far a query sees to the left and to the right, in positions.

    >>> mask = AttentionMask(causal=True, window=(1, 1))
    >>> mask.to_array(3, 3)[0, 0].astype(int)
    Array([[1, 0, 0],
           [1, 1, 0],
           [0, 1, 1]], dtype=int32)
    >>> ids = jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 2, 0]])
    >>> mask = AttentionMask(query_segment_ids=ids[0], key_segment_ids=ids[1])
    >>> mask.to_array(3, 4)[0, 0].astype(int)
    Array([[1, 1, 0, 0],
           [0, 0, 1, 0],
           [0, 0, 0, 0]], dtype=int32)
    """

    query_segment_ids: Any = None
    key_segment_ids: Any = None
    query_positions: Positions = None
    key_positions: Positions = None
    query_prefix: Any = None
    key_prefix: Any = None
    memory_keys: Any = None
    shared_keys: Any = None
    visible: Any = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: Window | None = dataclasses.field(default=None, metadata={"static": True})

    def to_array(self, query_length: int, key_length: int) -> Bool[Array, "#b 1 q k"] | None:
        """Returns the mask as an array, True where a query may attend; None if all may."""
        allowed = self.visible
        queries = _positions(self.query_positions, query_length)[:, None]
        keys = _positions(self.key_positions, key_length)[None, :]
        if self.causal:
            in_order = (keys <= queries)[None, None]
            if self.query_prefix is not None:
                queried = self.query_prefix > 0
                prefix = self.key_prefix > 0
                in_order = in_order | (queried[:, None, :, None] & prefix[:, None, None, :])
            allowed = _both(allowed, self._or_memory(in_order))
        if self.window is not None:
            left, right = self.window
            near = (keys >= queries - left) & (keys <= queries + right)
            allowed = _both(allowed, self._or_memory(near[None, None]))
        if self.query_segment_ids is not None:
            mine = self.query_segment_ids[:, None, :, None]
            theirs = self.key_segment_ids[:, None, None, :]
            allowed = _both(allowed, (mine == theirs) & (theirs != 0))
        if self.shared_keys is not None and allowed is not None:
            allowed = allowed | self.shared_keys[None, None, None]
        return allowed

    def with_memory(
        self,
        query_segment_ids: Int[Array, "b q"],
        segment_ids: Int[Array, "b memory"],
        key_length: int,
    ) -> "AttentionMask":
        """Returns the mask with memory keys before those of the queries' sequence.

        Args:
            query_segment_ids: a query attends to the memory of its segment.
            segment_ids: of the memory.
            key_length: number of the other keys.

        >>> ids = jnp.array([[1, 1]]), jnp.array([[1, 1, 0]])
        >>> mask = AttentionMask(query_segment_ids=ids[0], key_segment_ids=ids[0], causal=True)
        >>> mask.with_memory(ids[0], ids[1], 2).to_array(2, 5)[0, 0].astype(int)
        Array([[1, 1, 0, 1, 0],
               [1, 1, 0, 1, 1]], dtype=int32)
        """
        rows, count = segment_ids.shape
        own = _positions(self.key_positions, key_length)
        changed: dict[str, Any] = {
            "key_positions": jnp.concatenate([jnp.zeros(count, own.dtype), own]),
            "memory_keys": jnp.arange(count + key_length) < count,
        }
        if self.query_segment_ids is not None:
            changed["key_segment_ids"] = jnp.concatenate([segment_ids, self.key_segment_ids], 1)
        if self.visible is not None:
            seen = (query_segment_ids[:, :, None] == segment_ids[:, None]) & (segment_ids > 0)[
                :, None
            ]
            own_seen = jnp.broadcast_to(self.visible, (rows, *self.visible.shape[1:]))
            changed["visible"] = jnp.concatenate([seen[:, None], own_seen], 3)
        assert self.key_prefix is None, "a prefix has no memory"
        return dataclasses.replace(self, **changed)

    def with_shared_keys(self, count: int, key_length: int) -> "AttentionMask":
        """Returns the mask with keys before the others that every query attends to.

        Args:
            count: of these keys.
            key_length: number of the other keys.

        >>> ids = jnp.array([[1, 2, 0]])
        >>> mask = AttentionMask(query_segment_ids=ids, key_segment_ids=ids, causal=True)
        >>> mask.with_shared_keys(1, 3).to_array(3, 4)[0, 0].astype(int)
        Array([[1, 1, 0, 0],
               [1, 0, 1, 0],
               [1, 0, 0, 0]], dtype=int32)
        """
        if count == 0:
            return self
        changed: dict[str, Any] = {
            "key_positions": jnp.pad(_positions(self.key_positions, key_length), (count, 0)),
            "shared_keys": jnp.arange(count + key_length) < count,
        }
        for name, axis in _KEY_AXES.items():
            if name not in changed and (field := getattr(self, name)) is not None:
                widths = [(count if n == axis else 0, 0) for n in range(field.ndim)]
                changed[name] = jnp.pad(field, widths)
        return dataclasses.replace(self, **changed)

    def keys(self, start: int | Int[Array, ""], size: int) -> "AttentionMask":
        """Returns the mask on the keys `start` to `start + size` alone; `start` may be traced.

        >>> mask = AttentionMask(causal=True, key_positions=jnp.arange(3))
        >>> mask.keys(1, 2).to_array(3, 2)[0, 0].astype(int)
        Array([[0, 0],
               [1, 0],
               [1, 1]], dtype=int32)
        """
        sliced: dict[str, Any] = {"key_positions": key_positions(self.key_positions, start, size)}
        for name, axis in _KEY_AXES.items():
            if (field := getattr(self, name)) is not None:
                sliced[name] = jax.lax.dynamic_slice_in_dim(field, start, size, axis)
        return dataclasses.replace(self, **sliced)

    def _or_memory(self, allowed: Bool[Array, "#b 1 #q k"]) -> Bool[Array, "#b 1 #q k"]:
        return allowed if self.memory_keys is None else allowed | self.memory_keys[None, None, None]


def key_positions(positions: Positions, start: int | Int[Array, ""], size: int) -> Positions:
    """Returns the positions of the keys `start` to `start + size`."""
    if positions is None:
        return jnp.arange(size) + start
    return jax.lax.dynamic_slice_in_dim(jnp.asarray(positions), start, size)


def _positions(positions: Positions, length: int) -> Int[Array, "length"]:
    return jnp.arange(length) if positions is None else jnp.asarray(positions)


def _both(first: Any, second: Any) -> Any:
    return second if first is None else first & second
