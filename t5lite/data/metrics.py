"""Metrics of predictions against right answers, by name.

A metric takes the right answers of every example, at least one each, and the predictions in the
same order, and returns scores by name. To add one, write a function and a row of `METRICS_TABLE`,
or name a function of your own as "module:function".
"""

import collections
import importlib
import importlib.util
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from t5lite.core.errors import UserError
from t5lite.core.named import named
from t5lite.data.ranking_metrics import mrr, ndcg

Answers = Sequence[Sequence[str]]
Metric = Callable[[Answers, Sequence[str]], dict[str, float]]


def exact_match(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Fraction of predictions that equal a right answer.

    >>> exact_match([["a b"], ["c", "d"], ["e"]], ["a b", "d", "E"])["exact_match_fraction"]
    0.6666666666666666
    """
    pairs = zip(answers, predictions, strict=True)
    return {"exact_match_fraction": _mean([float(p in right) for right, p in pairs])}


def word_f1(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of the words of a prediction, in any order, with the best answer.

    >>> word_f1([["a b"], ["", "x"]], ["b c d", ""])
    {'word_f1_fraction': 0.7}
    """
    return {"word_f1_fraction": _best(_f1_of_words, answers, predictions)}


def label_f1(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """F1, averaged over the classes among the right answers; each example counts its first answer.

    >>> label_f1([["a"], ["a"], ["b"]], ["a", "b", "b"])["label_f1_fraction"]
    0.6666666666666666
    """
    right = [first for first, *_ in answers]
    hits = collections.Counter(r for r, p in zip(right, predictions, strict=True) if r == p)
    wanted = collections.Counter(right)
    got = collections.Counter(predictions)
    f1s = [2 * hits[label] / (wanted[label] + got[label]) for label in sorted(wanted)]
    return {"label_f1_fraction": _mean(f1s)}


def span_f1(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """F1 of the spans of BIO tags, separated by spaces; each example counts its first answer.

    A span is right if its words and its kind are. `I-x` continues a span of kind x, and begins one
    after anything else. Missing predictions count as `O`.

    >>> span_f1([["B-x I-x O B-y"]], ["B-x I-x B-x B-y"])["span_f1_fraction"]
    0.8

    Source: Tjong Kim Sang and Buchholz, CoNLL-2000, conlleval.
    """
    wanted = [_spans(first.split()) for first, *_ in answers]
    got = [_spans(prediction.split()) for prediction in predictions]
    hits = sum(len(right & made) for right, made in zip(wanted, got, strict=True))
    spans = sum(map(len, wanted)) + sum(map(len, got))
    # Without any span, nothing is wrong.
    return {"span_f1_fraction": 2 * hits / spans if spans else 1.0}


def _spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Returns (start, end, kind) of the spans of BIO tags."""
    spans = set[tuple[int, int, str]]()
    start = 0
    inside: str | None = None
    for position, tag in enumerate([*tags, "O"]):
        begins, _, kind = tag.partition("-")
        continues = begins == "I" and kind == inside
        if inside is not None and not continues:
            spans.add((start, position, inside))
        if begins not in ("B", "I"):
            inside = None
        elif not continues:
            start = position
            inside = kind
    return spans


def bleu(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of plain text with the defaults of sacrebleu, from 0 to 100."""
    sacrebleu = importlib.import_module("sacrebleu")
    return {"bleu_percent": sacrebleu.corpus_bleu(predictions, _streams(answers)).score}


def bleu_of_tokens(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of tokenized text, whose tokens are separated by spaces, from 0 to 100.

    >>> round(bleu_of_tokens([["a b c d"]], ["a b c d ."])["bleu_of_tokens_percent"], 1)
    66.9
    """
    sacrebleu = importlib.import_module("sacrebleu")
    made = sacrebleu.corpus_bleu(predictions, _streams(answers), tokenize="none", force=True)
    return {"bleu_of_tokens_percent": made.score}


def chrf(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Corpus chrF2 with the defaults of sacrebleu, from 0 to 100."""
    sacrebleu = importlib.import_module("sacrebleu")
    return {"chrf_percent": sacrebleu.corpus_chrf(predictions, _streams(answers)).score}


def rouge(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-Lsum with the best answer.

    Sentences are separated by line ends or " . ", and words are not stemmed, as in T5.
    """
    from_name = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeLsum": "rouge_lsum"}
    scorer = importlib.import_module("rouge_score.rouge_scorer").RougeScorer(list(from_name))
    made = [
        scorer.score_multi(list(map(_lines, right)), _lines(prediction))
        for right, prediction in zip(answers, predictions, strict=True)
    ]
    return {
        f"{score}_f1_fraction": _mean([each[name].fmeasure for each in made])
        for name, score in from_name.items()
    }


def word_error_rate(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Word edits over the words of the nearest right answers.

    >>> word_error_rate([["a b c"], ["d"]], ["a x c", "d"])
    {'word_error_rate_fraction': 0.25}
    """
    words = [[text.split() for text in right] for right in answers]
    edits, length = _edits(words, [text.split() for text in predictions])
    return {"word_error_rate_fraction": edits / max(length, 1)}


def character_error_rate(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """`word_error_rate` of characters, and the mean number of character edits.

    >>> character_error_rate([["abc", "abd"], ["d"]], ["abd", "da"])
    {'character_error_rate_fraction': 0.25, 'edit_distance_characters': 0.5}
    """
    edits, length = _edits(answers, predictions)
    return {
        "character_error_rate_fraction": edits / max(length, 1),
        "edit_distance_characters": edits / len(predictions),
    }


def squad(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """SQuAD's exact match and F1 of words: without case, punctuation and articles.

    A question without an answer has the right answer "".

    >>> squad([["The cat", "a dog"], [""]], ["cat.", ""])
    {'squad_exact_match_fraction': 1.0, 'squad_f1_fraction': 1.0}

    Source: Rajpurkar et al., SQuAD, the official evaluation scripts of version 1.1 and, for
    questions without an answer, 2.0.
    """

    def f1(answer: str, prediction: str) -> float:
        wanted = _normalized(answer)
        # Version 1.1 scores 0 for an answer such as "The", of which no word remains.
        return 0.0 if answer and not wanted else _f1_of_words(wanted, _normalized(prediction))

    def match(answer: str, prediction: str) -> float:
        return float(_normalized(answer) == _normalized(prediction))

    return {
        "squad_exact_match_fraction": _best(match, answers, predictions),
        "squad_f1_fraction": _best(f1, answers, predictions),
    }


class MetricRow(NamedTuple):
    """A metric, and the package of the extra `metrics` that it imports."""

    function: Metric
    package: str | None = None


METRICS_TABLE: Mapping[str, MetricRow] = {
    "exact_match": MetricRow(exact_match),
    "word_f1": MetricRow(word_f1),
    "label_f1": MetricRow(label_f1),
    "span_f1": MetricRow(span_f1),
    "bleu": MetricRow(bleu, "sacrebleu"),
    "bleu_of_tokens": MetricRow(bleu_of_tokens, "sacrebleu"),
    "chrf": MetricRow(chrf, "sacrebleu"),
    "rouge": MetricRow(rouge, "rouge_score"),
    "word_error_rate": MetricRow(word_error_rate, "rapidfuzz"),
    "character_error_rate": MetricRow(character_error_rate, "rapidfuzz"),
    "squad": MetricRow(squad),
    "mrr": MetricRow(mrr),
    "ndcg": MetricRow(ndcg),
}

METRIC_FUNCTIONS: Mapping[str, Metric] = {name: row.function for name, row in METRICS_TABLE.items()}


def metric(name: str, *, owner: str = "Task.metrics") -> Metric:
    """Returns a metric by its name in the table, or as "module:function".

    A user's own metric is wrapped: it raises a UserError if it fails or returns anything but
    numbers by name.

    Args:
        owner: the field that names it.

    Raises:
        UserError: if there is no such metric, or the package that it needs is not installed.
    """
    found = named(owner, name, METRIC_FUNCTIONS)
    if ":" in name:
        return _checked(owner, name, found)
    package = METRICS_TABLE[name].package
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(
            f"{owner}: {name!r} needs {package}, which is not installed; "
            "pip install 't5lite[metrics]'"
        )
    return found


def _checked(owner: str, name: str, own: Metric) -> Metric:
    """Returns a user's own metric that raises a UserError if it fails."""

    def checked(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
        try:
            return {str(score): float(value) for score, value in own(answers, predictions).items()}
        # The user's own function may raise anything.
        except Exception as error:
            raise UserError(
                f"{owner}: {name!r} must return numbers by name, got {type(error).__name__}: "
                f"{error}"
            ) from error

    return checked


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _best(
    score: Callable[[str, str], float], answers: Answers, predictions: Sequence[str]
) -> float:
    """Returns the mean over examples of the score with the best answer."""
    pairs = zip(answers, predictions, strict=True)
    return _mean([max(score(answer, p) for answer in right) for right, p in pairs])


def _lines(text: str) -> str:
    return text.replace(" . ", " .\n")


def _f1_of_words(answer: str, prediction: str) -> float:
    wanted = answer.split()
    got = prediction.split()
    if not wanted and not got:
        return 1.0
    common = collections.Counter(wanted) & collections.Counter(got)
    return 2 * common.total() / (len(wanted) + len(got))


_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _normalized(text: str) -> str:
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _edits(answers: Sequence[Sequence[Any]], predictions: Sequence[Any]) -> tuple[int, int]:
    """Returns the edits to the nearest answers and the lengths of these, summed over examples."""
    distance = importlib.import_module("rapidfuzz.distance").Levenshtein.distance
    nearest = [
        min((distance(answer, prediction), len(answer)) for answer in right)
        for right, prediction in zip(answers, predictions, strict=True)
    ]
    return sum(edits for edits, _ in nearest), sum(length for _, length in nearest)


def _streams(answers: Answers) -> list[list[str | None]]:
    """Returns the first answers of all examples, the second answers, and so on, for sacrebleu."""
    return [
        [right[index] if index < len(right) else None for right in answers]
        for index in range(max(map(len, answers)))
    ]
