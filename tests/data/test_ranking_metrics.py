import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.ranking_metrics import mrr, ndcg


def test_metrics_are_those_of_each_query_in_float64(rng):
    answers, predictions, wanted = [], [], []
    for _ in range(20):
        count = int(rng.integers(2, 30))
        relevance = rng.integers(0, 4, count) * (rng.random(count) < 0.2)
        order = rng.permutation(count)
        answers.append([" ".join(map(str, relevance))])
        predictions.append(" ".join(map(str, order)))
        ranked = relevance[order].astype(np.float64)
        found = np.flatnonzero(ranked)
        first = found[0] + 1.0 if len(found) else np.inf
        discounts = 1 / np.log2(np.arange(2, count + 2))
        discounts[10:] = 0
        best = np.sort(ranked)[::-1] @ discounts
        wanted.append((1 / first, (first <= 10) / first, ranked @ discounts / best if best else 0))
    names = ("mrr_fraction", "mrr_at_10_fraction", "ndcg_at_10_fraction")
    made = mrr(answers, predictions) | ndcg(answers, predictions)
    for name, value in zip(names, np.mean(wanted, axis=0), strict=True):
        assert made[name] == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize(
    ("answer", "prediction", "message"),
    [
        ("yes", "no", "needs the relevance of each candidate.* got 'yes' and 'no'"),
        ("1 0", "0", "got '1 0' and '0'; use it with the objective Ranking"),
        ("1", "0", "needs queries with several candidates, got one each"),
    ],
)
def test_what_is_no_ranking_is_rejected(answer, prediction, message):
    with pytest.raises(UserError, match=message):
        mrr([[answer]], [prediction])
