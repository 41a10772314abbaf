"""Logits of classes instead of tokens."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.fields import check_field_choice, field_error
from t5lite.core.transitions import Transitions
from t5lite.models.adapters import Axis
from t5lite.models.config_fields import T5Fields
from t5lite.models.initializers import ConstantInit, ScaledInit, parameter
from t5lite.models.linear import LinearMap

# How the classes of the tokens of an example depend on each other.
INDEPENDENT = "independent"
CHAIN = "chain"
SPAN = "span"
RANKING = "ranking"
STRUCTURES = (INDEPENDENT, CHAIN, SPAN, RANKING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes that a model decides between, instead of tokens.

    Args:
        count: of classes.
        per_token: whether every token gets a class (tagging), or an example gets one
            (classification), which is repeated at each of its tokens.
        pooling: what represents an example: the "mean" over its tokens, the "first" one, as BERT's
            [CLS], or the "last" one, as in T5ForSequenceClassification.
        has_dense: whether a linear map of the model's width and a tanh are before the logits, as
            there.
        structure: how the classes of the tokens of an example depend on each other: "independent",
            or "chain", with a score for each pair of classes that follow each other, as in a
            linear-chain conditional random field, or "span", whose two classes are the first and
            the last token of an answer. Of examples: "ranking", whose only class is the score by
            which the candidates of a query are ranked. `train.loss` must be one for this structure.
        names: of the classes, in the order of the logits; empty if unknown.

    Raises:
        UserError: for fewer than two classes, an unknown pooling or one of a model that classifies
            tokens, an unknown structure or one that does not fit `per_token`, or a wrong number of
            names.
    """

    count: int
    per_token: bool
    pooling: str = "mean"
    has_dense: bool = False
    names: Sequence[str] = ()
    structure: str = INDEPENDENT

    def __post_init__(self) -> None:
        is_ranking = self.structure == RANKING
        if is_ranking and self.count != 1:
            raise field_error(self, "count", f"1 with Classes.structure {RANKING!r}")
        if self.count < 2 and not is_ranking:
            raise field_error(self, "count", "at least 2")
        check_field_choice(self, "pooling", POOLINGS)
        if self.per_token and self.pooling != "mean":
            raise field_error(self, "pooling", "'mean', its default, with Classes.per_token")
        check_field_choice(self, "structure", STRUCTURES)
        if is_ranking and self.per_token:
            raise field_error(self, "per_token", f"False with Classes.structure {RANKING!r}")
        if self.structure in (CHAIN, SPAN) and not self.per_token:
            rule = f"{INDEPENDENT!r}, its default, or {RANKING!r} without Classes.per_token"
            raise field_error(self, "structure", rule)
        if self.structure == SPAN and self.count != 2:
            raise field_error(self, "count", f"2 with Classes.structure {SPAN!r}")
        # gin and JSON pass lists, which are not hashable.
        object.__setattr__(self, "names", tuple(self.names))
        if self.names and len(self.names) != self.count:
            raise field_error(self, "names", f"empty or {self.count} names (Classes.count)")


class Classifier(nn.Module):
    """An affine map to the logits of classes, in float32.

    Parameters:
        kernel [embed, classes], truncated normal with variance 1 / embed; bias [classes], zeros.
        With `Classes.has_dense` dense/kernel [embed, activation_embed], as kernel, and dense/bias.
        For a chain transitions/pairs [classes, following_classes], transitions/first [classes] and
        transitions/last [classes], zeros.
    """

    config: T5Fields
    classes: Classes

    def setup(self) -> None:
        config = self.config
        count = self.classes.count
        normal = ScaledInit(1.0, "truncated_normal")
        self.dense = None
        if self.classes.has_dense:
            self.dense = LinearMap(
                "ble,ef->blf",
                inputs=(Axis("embed", config.embed_dim),),
                outputs=(Axis("activation_embed", config.embed_dim),),
                initializer=normal,
                full_name=f"{self.name}/dense",
                adapters=config.adapters,
                has_bias=True,
            )
        kernel = parameter(normal, ("embed", "classes"))
        self.kernel = self.param("kernel", kernel, (config.embed_dim, count))
        self.bias: Any = self.param("bias", parameter(ConstantInit(0.0), ("classes",)), (count,))
        self.transitions = None
        if self.classes.structure == CHAIN:
            self.transitions = _TransitionScores(count)

    def transition_scores(self) -> Transitions:
        """Returns the scores of a chain."""
        assert self.transitions is not None, self.classes
        scores: Transitions = self.transitions()
        return scores

    def __call__(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]:
        x = x.astype(jnp.float32)
        if self.dense is not None:
            x = jnp.tanh(self.dense(x))
        if self.transitions is not None and self.is_initializing():
            self.transitions()
        return jnp.einsum("ble,ev->blv", x, self.kernel) + self.bias[None, None]


class _TransitionScores(nn.Module):
    """The parameters of `Transitions`."""

    count: int

    @nn.compact
    def __call__(self) -> Transitions:
        axes = ("classes", "following_classes")
        zeros = ConstantInit(0.0)
        pairs: Any = self.param("pairs", parameter(zeros, axes), (self.count, self.count))
        first: Any = self.param("first", parameter(zeros, axes[:1]), (self.count,))
        last: Any = self.param("last", parameter(zeros, axes[:1]), (self.count,))
        return Transitions(pairs, first, last)


def mean_of_segments(
    x: Float[Array, "b l e"], segment_ids: Int[Array, "b l"]
) -> Float[Array, "b l e"]:
    """Returns at each token the mean over the tokens of its example; 0 for padding.

    >>> x = jnp.array([[[1.0], [3.0], [5.0], [7.0]]])
    >>> mean_of_segments(x, jnp.array([[1, 1, 2, 0]]))[0, :, 0].tolist()
    [2.0, 2.0, 5.0, 0.0]
    """
    return _weighted_mean(x, segment_ids, segment_ids > 0)


def first_of_segments(
    x: Float[Array, "b l e"], segment_ids: Int[Array, "b l"]
) -> Float[Array, "b l e"]:
    """Returns at each token the vector of the first token of its example; 0 for padding.

    >>> x = jnp.array([[[1.0], [3.0], [5.0], [7.0]]])
    >>> first_of_segments(x, jnp.array([[1, 1, 2, 0]]))[0, :, 0].tolist()
    [1.0, 1.0, 5.0, 0.0]
    """
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    return _weighted_mean(x, segment_ids, (segment_ids > 0) & (segment_ids != before))


def last_of_segments(
    x: Float[Array, "b l e"], segment_ids: Int[Array, "b l"]
) -> Float[Array, "b l e"]:
    """Returns at each token the vector of the last token of its example; 0 for padding.

    >>> x = jnp.array([[[1.0], [3.0], [5.0], [7.0]]])
    >>> last_of_segments(x, jnp.array([[1, 1, 2, 0]]))[0, :, 0].tolist()
    [3.0, 3.0, 5.0, 0.0]
    """
    after = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1)))
    return _weighted_mean(x, segment_ids, (segment_ids > 0) & (segment_ids != after))


def _weighted_mean(
    x: Float[Array, "b l e"], segment_ids: Int[Array, "b l"], counts: Bool[Array, "b l"]
) -> Float[Array, "b l e"]:
    """Returns at each token the mean over the tokens of its example that count."""
    count = segment_ids.shape[1] + 1

    def of_row(
        row: Float[Array, "l e"], ids: Int[Array, "l"], weights: Float[Array, "l"]
    ) -> Float[Array, "l e"]:
        sums = jax.ops.segment_sum(row.astype(jnp.float32) * weights[:, None], ids, count)
        tokens = jax.ops.segment_sum(weights[:, None], ids, count)
        return (sums / jnp.maximum(tokens, 1.0))[ids]

    return jax.vmap(of_row)(x, segment_ids, counts.astype(jnp.float32)).astype(x.dtype)


# What represents an example, by name.
POOLINGS: Mapping[str, Callable[..., Float[Array, "b l e"]]] = {
    "mean": mean_of_segments,
    "first": first_of_segments,
    "last": last_of_segments,
}

# Of `T5Config.next_sentence`: the second part of the inputs follows the first, or does not.
NEXT_SENTENCE = Classes(count=2, per_token=False, has_dense=True)
