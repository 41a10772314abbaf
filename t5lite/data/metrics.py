"""Metrics of predictions against right answers, and what is done to both before: by name.

A metric takes the right answers of every example, of which there may be several, and the
predictions, in one order, and returns scores by name. A step takes a text and returns it changed.
"""

import collections
import importlib
import importlib.util
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.named import named

Answers = Sequence[Sequence[str]]
Metric = Callable[[Answers, Sequence[str]], dict[str, float]]
TextStep = Callable[[str], str]


def exact_match(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that are a right answer, letter for letter.

    >>> exact_match([["a b"], ["c", "d"], ["e"]], ["a b", "d", "E"])["exact_match_fraction"]
    0.6666666666666666
    """
    pairs = zip(answers, predictions, strict=True)
    return {"exact_match_fraction": _mean([float(p in right) for right, p in pairs])}


def word_f1(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Mean over examples of the F1 of the words, whatever their order, with the best answer.

    >>> word_f1([["a b"], ["", "x"]], ["b c d", ""])
    {'word_f1_fraction': 0.7}
    """
    return {"word_f1_fraction": _best(_f1_of_words, answers, predictions)}


def label_f1(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Mean of F1 over the classes that are a right answer: of each example, its first.

    >>> label_f1([["a"], ["a"], ["b"]], ["a", "b", "b"])["label_f1_fraction"]
    0.6666666666666666
    """
    right = [first for first, *_ in answers]
    hits = collections.Counter(r for r, p in zip(right, predictions, strict=True) if r == p)
    wanted, got = collections.Counter(right), collections.Counter(predictions)
    f1s = [2 * hits[label] / (wanted[label] + got[label]) for label in sorted(wanted)]
    return {"label_f1_fraction": _mean(f1s)}


def bleu(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of plain text, as sacrebleu has it by default, from 0 to 100."""
    sacrebleu = importlib.import_module("sacrebleu")
    return {"bleu_percent": sacrebleu.corpus_bleu(predictions, _streams(answers)).score}


def bleu_of_tokens(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of text in which spaces already separate all tokens, from 0 to 100.

    >>> round(bleu_of_tokens([["a b c d"]], ["a b c d ."])["bleu_of_tokens_percent"], 1)
    66.9
    """
    sacrebleu = importlib.import_module("sacrebleu")
    made = sacrebleu.corpus_bleu(predictions, _streams(answers), tokenize="none", force=True)
    return {"bleu_of_tokens_percent": made.score}


def chrf(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Corpus chrF2 of sacrebleu, from 0 to 100."""
    sacrebleu = importlib.import_module("sacrebleu")
    return {"chrf_percent": sacrebleu.corpus_chrf(predictions, _streams(answers)).score}


def rouge(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-Lsum with the best answer.

    Lines, and what " . " separates, are sentences; words are not stemmed: as in T5.
    """
    from_name = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeLsum": "rouge_lsum"}
    scorer = importlib.import_module("rouge_score.rouge_scorer").RougeScorer(list(from_name))
    made = [
        scorer.score_multi(list(map(_lines, right)), _lines(prediction))
        for right, prediction in zip(answers, predictions, strict=True)
    ]
    return {
        f"{named}_f1_fraction": _mean([each[name].fmeasure for each in made])
        for name, named in from_name.items()
    }


def word_error_rate(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Words to insert, delete and replace, over the words of the nearest right answers.

    >>> word_error_rate([["a b c"], ["d"]], ["a x c", "d"])
    {'word_error_rate_fraction': 0.25}
    """
    words = [[text.split() for text in right] for right in answers]
    edits, length = _edits(words, [text.split() for text in predictions])
    return {"word_error_rate_fraction": edits / max(length, 1)}


def character_error_rate(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """As `word_error_rate`, of characters; and how many of them to change on average.

    >>> character_error_rate([["abc", "abd"], ["d"]], ["abd", "da"])
    {'character_error_rate_fraction': 0.25, 'edit_distance_characters': 0.5}
    """
    edits, length = _edits(answers, predictions)
    return {
        "character_error_rate_fraction": edits / max(length, 1),
        "edit_distance_characters": edits / len(predictions),
    }


def squad(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of words as SQuAD has them: without case, punctuation and articles.

    >>> squad([["The cat", "a dog"]], ["cat."])
    {'squad_exact_match_fraction': 1.0, 'squad_f1_fraction': 1.0}

    Source: Rajpurkar et al., SQuAD, the official evaluation script of version 1.1.
    """
    answers = [list(map(_plain_words, right)) for right in answers]
    predictions = list(map(_plain_words, predictions))
    return {
        "squad_exact_match_fraction": _best(lambda a, b: float(a == b), answers, predictions),
        # Nothing has nothing in common with nothing.
        "squad_f1_fraction": _best(
            lambda a, b: _f1_of_words(a, b) if a else 0.0, answers, predictions
        ),
    }


METRICS: Mapping[str, Metric] = {
    metric.__name__: metric
    for metric in (
        *(exact_match, word_f1, label_f1, bleu, bleu_of_tokens, chrf, rouge),
        *(word_error_rate, character_error_rate, squad),
    )
}

# Packages of the extra `metrics`, imported where they are used.
_PACKAGES = {
    **dict.fromkeys(("bleu", "bleu_of_tokens", "chrf"), "sacrebleu"),
    "rouge": "rouge_score",
    **dict.fromkeys(("word_error_rate", "character_error_rate"), "rapidfuzz"),
}


def metric(name: str) -> Metric:
    """Returns a metric by its name in this module, or as "module:function".

    Raises:
        UserError: where there is none, or what it needs is not installed; and when one of the
            user's own is called and fails, or returns something else than numbers by name.
    """
    found = named("Task.metrics", name, METRICS)
    package = _PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(
            f"Task.metrics: {name!r} needs {package}, which is not installed; "
            "pip install 't5lite[metrics]'"
        )
    return _checked(name, found) if ":" in name else found


def _checked(name: str, own: Metric) -> Metric:
    """Returns a metric of the user's own that raises a UserError where it fails."""

    def metric(answers: Answers, predictions: Sequence[str]) -> dict[str, float]:
        try:
            return {str(score): float(value) for score, value in own(answers, predictions).items()}
        # Whatever the user's own metric raises.
        except Exception as error:
            raise UserError(
                f"Task.metrics: {name!r} must return numbers by name, got {type(error).__name__}: "
                f"{error}"
            ) from error

    return metric


def normalize_whitespace(text: str) -> str:
    """Runs of white space become one space, none at either end."""
    return " ".join(text.split())


def join_subwords(text: str) -> str:
    """Joins what byte-pair encoding has marked as parts of one word.

    >>> join_subwords("some@@ thing el@@ se")
    'something else'
    """
    return text.replace("@@ ", "").removesuffix("@@")


TEXT_STEPS: Mapping[str, TextStep] = {
    "lowercase": str.lower,
    "normalize_whitespace": normalize_whitespace,
    "join_subwords": join_subwords,
}


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _best(
    score: Callable[[str, str], float], answers: Answers, predictions: Sequence[str]
) -> float:
    """Mean of the scores, each with the answer that gives the highest."""
    pairs = zip(answers, predictions, strict=True)
    return _mean([max(score(answer, p) for answer in right) for right, p in pairs])


def _lines(text: str) -> str:
    return text.replace(" . ", " .\n")


def _f1_of_words(answer: str, prediction: str) -> float:
    wanted, got = answer.split(), prediction.split()
    if not wanted and not got:
        return 1.0
    common = collections.Counter(wanted) & collections.Counter(got)
    return 2 * common.total() / (len(wanted) + len(got))


_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _plain_words(text: str) -> str:
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _edits(answers: Sequence[Sequence[Any]], predictions: Sequence[Any]) -> tuple[int, int]:
    """Returns edits to, and lengths of, the answers nearest to the predictions, summed up."""
    distance = importlib.import_module("rapidfuzz.distance").Levenshtein.distance
    nearest = [
        min((distance(answer, prediction), len(answer)) for answer in right)
        for right, prediction in zip(answers, predictions, strict=True)
    ]
    return sum(edits for edits, _ in nearest), sum(length for _, length in nearest)


def _streams(answers: Answers) -> list[list[str | None]]:
    """One list for each place among the answers, as sacrebleu takes them."""
    return [
        [right[place] if place < len(right) else None for right in answers]
        for place in range(max(map(len, answers)))
    ]
