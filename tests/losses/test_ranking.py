import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.losses.ranking import ListwiseSoftmax, PairwiseLogistic, PointwiseLogistic
from t5lite.models.classifier import Classes
from tests.losses.fixed import Fixed

# Of sums of a few float32 numbers.
ROUNDING = 1e-5
EPSILON = 0.5
LOSSES = (ListwiseSoftmax(epsilon=EPSILON), PairwiseLogistic(), PointwiseLogistic())
# Candidates of queries by their first tokens; two queries share the first row, the candidates of
# the second query are equally relevant, and the last row is padding.
QUERIES = [[1, 1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 2, 2, 2, 2, 0, 0], [0] * 9]
WEIGHTS = [[1, 0, 1, 1, 0, 1, 0, 1, 0], [1, 1, 0, 1, 1, 1, 0, 0, 0], [0] * 9]
RELEVANCE = [[0, 0, 2, 1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 3, 0, 0, 0, 0], [0] * 9]


def batch():
    given = {"query_ids": QUERIES, "loss_weights": WEIGHTS, "target_tokens": RELEVANCE}
    return {f"encoder_{name}": jnp.asarray(rows, jnp.int32) for name, rows in given.items()}


@jax.jit
def sums_and_gradients(scores):
    def total(loss, scores):
        sums = loss(Fixed(), {"logits": scores}, batch())
        return sums["loss"], sums

    made = [jax.value_and_grad(total, argnums=1, has_aux=True)(loss, scores) for loss in LOSSES]
    rows = [loss(Fixed(), {"logits": scores}, batch(), by_row=True) for loss in LOSSES]
    return [(sums, gradient) for (_, sums), gradient in made], rows


def softmax_and_pairs(scores, relevance):
    """The losses of one query in float64, in the order of `LOSSES`, and whether it is right."""
    p = np.exp(scores) / np.exp(scores).sum()
    share = relevance / max(relevance.sum(), 1)
    softmax = (share * (-np.log(p) + EPSILON * (1 - p))).sum()
    pairs = [
        np.log1p(np.exp(scores[j] - scores[i]))
        for i in range(len(scores))
        for j in range(len(scores))
        if relevance[i] > relevance[j]
    ]
    right = relevance[scores.argmax()] == relevance.max()
    p = 1 / (1 + np.exp(-scores))
    of_points = -np.log(np.where(relevance > 0, p, 1 - p)).sum()
    return softmax, np.mean(pairs) if pairs else None, of_points, right


def test_losses_are_those_of_each_query_in_float64(rng):
    scores = rng.normal(size=(3, 9, 1)).astype(np.float32) * 3
    whole, rows = sums_and_gradients(jnp.asarray(scores))
    wanted = np.zeros((3, 3, 3))
    for row in range(3):
        for query in (1, 2):
            at = [n for n in range(9) if WEIGHTS[row][n] and QUERIES[row][n] == query]
            if not at:
                continue
            own = scores[row, at, 0].astype(np.float64)
            relevance = np.array(RELEVANCE[row])[at]
            softmax, pairs, points, right = softmax_and_pairs(own, relevance)
            if relevance.any():
                wanted[0, row] += softmax, 1, right
            if pairs is not None:
                wanted[1, row] += pairs, 1, right
            wanted[2, row] += points, len(at), ((own > 0) == (relevance > 0)).sum()
    for number, sums in enumerate(rows):
        made = np.stack([sums[name] for name in ("loss", "tokens", "correct")], axis=-1)
        np.testing.assert_allclose(made, wanted[number], atol=ROUNDING, rtol=ROUNDING)
        totals, gradient = whole[number]
        for name, value in totals.items():
            assert value == pytest.approx(float(sums[name].sum()), rel=ROUNDING), name
        # Where there is no candidate, nothing is learned.
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient)[np.array(WEIGHTS) == 0].any()


def test_equal_scores_are_not_right():
    _, rows = sums_and_gradients(jnp.zeros((3, 9, 1)))
    # Of the second query of the first row all candidates are as relevant as the best.
    assert rows[0]["correct"].tolist() == [1, 0, 0]
    assert rows[1]["correct"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Classes(count=2, per_token=False, structure="ranking"), "count must be 1 with"),
        (lambda: Classes(count=1, per_token=True, structure="ranking"), "per_token must be False"),
        (lambda: Classes(count=1, per_token=False), "Classes.count must be at least 2"),
        (lambda: ListwiseSoftmax(epsilon=-2.0), "ListwiseSoftmax.epsilon must be at least -1"),
    ],
)
def test_what_is_no_ranking_is_rejected(call, message):
    with pytest.raises(UserError, match=message):
        call()
