"""Metrics of rankings: each example is a query.

The right answer is the relevance of all candidates in their order, whole numbers separated by
spaces; the prediction is the numbers of the candidates, counted from 0, the best first.
"""

import math
from collections.abc import Sequence

from t5lite.core.errors import UserError

_Answers = Sequence[Sequence[str]]
# How many of the best candidates count.
CUT = 10


def mrr(answers: _Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Mean of 1 / rank of the first relevant candidate, among all and among the first 10.

    A query without a relevant candidate, or without one among the first 10, counts as 0.

    >>> mrr([["0 0 1"], ["1 0"]], ["1 2 0", "0 1"])
    {'mrr_fraction': 0.75, 'mrr_at_10_fraction': 0.75}

    Source: the evaluation of MS MARCO's passage ranking, for the first 10.
    """
    ranked = _ranked("mrr", answers, predictions)
    firsts = [next((n for n, r in enumerate(each, 1) if r > 0), math.inf) for each in ranked]
    return {
        "mrr_fraction": sum(1 / rank for rank in firsts) / len(firsts),
        "mrr_at_10_fraction": sum(1 / rank for rank in firsts if rank <= CUT) / len(firsts),
    }


def ndcg(answers: _Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Mean of the relevance of the first 10 candidates, discounted by rank, over the best possible.

    The discount of rank r is log2(r + 1). A query without a relevant candidate counts as 0.

    >>> round(ndcg([["0 2 1"]], ["2 1 0"])["ndcg_at_10_fraction"], 4)
    0.8597

    Source: Järvelin and Kekäläinen, Cumulated Gain-based Evaluation of IR Techniques; the gain is
    the relevance itself, as in trec_eval.
    """
    ranked = _ranked("ndcg", answers, predictions)
    scores = []
    for relevance in ranked:
        best = _discounted(sorted(relevance, reverse=True))
        scores.append(_discounted(relevance) / best if best else 0.0)
    return {"ndcg_at_10_fraction": sum(scores) / len(scores)}


def _discounted(relevance: Sequence[int]) -> float:
    return math.fsum(r / math.log2(rank + 1) for rank, r in enumerate(relevance[:CUT], 1))


def _ranked(name: str, answers: _Answers, predictions: Sequence[str]) -> list[list[int]]:
    """Returns the relevance of the candidates of each query, the first of the ranking first."""
    ranked = []
    for (right, *_), prediction in zip(answers, predictions, strict=True):
        try:
            relevance = [int(number) for number in right.split()]
            order = [int(number) for number in prediction.split()]
            is_ranking = sorted(order) == list(range(len(relevance)))
        except ValueError:
            is_ranking = False
        if not is_ranking:
            raise UserError(
                f"Task.metrics: {name!r} needs the relevance of each candidate, as in '0 1 0', and "
                f"a ranking of all, as in '1 0 2', got {right[:40]!r} and {prediction[:40]!r}; use "
                "it with the objective Ranking"
            )
        ranked.append([relevance[number] for number in order])
    if max(map(len, ranked)) < 2:
        raise UserError(
            f"Task.metrics: {name!r} needs queries with several candidates, got one each; list the "
            "candidates of a query in one record"
        )
    return ranked
