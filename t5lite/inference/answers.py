"""From requests to results: text to tokens, targets or scores of the model, and text again."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import ClassObjective, Example, Found, Tokens
from t5lite.data.text.vocabulary import Vocabulary
from t5lite.inference.class_predictions import PredictClasses, predict_parts
from t5lite.inference.decoding import check_target_lengths
from t5lite.inference.predict import Predict, Prompt, Target
from t5lite.inference.requests import Request
from t5lite.inference.score import Score
from t5lite.models.row_adapters import NO_ADAPTER

# From parameters, requests, the number of the first request, and a function to call with the number
# of requests done so far, to the fields that are added to each request.
Answer = Callable[[Any, Sequence[Request], int, Callable[[int], None]], list[dict[str, Any]]]


class RequestEncoder:
    """Encodes the texts of requests as tokens, cut at the maximum lengths.

    Args:
        inputs_length, targets_length: maximum numbers of tokens.
        end_inputs: whether the vocabulary's last ids, such as an end of sequence, close the inputs.
        adapters: names of the adapters that requests may choose.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        inputs_length: int,
        targets_length: int,
        *,
        end_inputs: bool,
        adapters: Sequence[str] = (),
    ) -> None:
        self._vocabulary = vocabulary
        self._adapters = tuple(adapters)
        self._first_ids = np.array(vocabulary.first_input_ids, np.int32)
        last = vocabulary.last_input_ids if end_inputs else ()
        self._last_ids = np.array(last, np.int32)
        self.lengths = (inputs_length, targets_length)
        self._room = max(0, inputs_length - len(self._first_ids) - len(self._last_ids))

    @property
    def kept_texts(self) -> re.Pattern[str] | None:
        """Matches the texts that preprocessors leave as they are."""
        return self._vocabulary.kept_texts

    def is_cut(self, request: Request) -> bool:
        """Whether a text of a request is longer than its maximum.

        Raises:
            UserError: if a text names a sentinel that the vocabulary does not have, its adapter is
                unknown, or the prefix or a length in its `decoding` exceeds the maximum of targets.
        """
        self.adapter(request)
        targets = self.lengths[1]
        if len(self.prefix(request)) > targets:
            raise UserError(f"its prefix must be at most {targets} tokens (infer.targets_length)")
        check_target_lengths(request.decoding, targets, "infer.targets_length")
        is_long = len(encode(request.inputs, self._vocabulary)) > self._room
        if request.targets is not None:
            is_long |= len(encode(request.targets, self._vocabulary)) > targets - 1
        return is_long

    def adapter(self, request: Request) -> int:
        """Returns the number of the adapter that a request names, or of the only one.

        Raises:
            UserError: if there is no adapter of that name.
        """
        name = request.given.get("adapter")
        if not self._adapters or (name is None and len(self._adapters) > 1):
            return NO_ADAPTER
        if name is not None and name not in self._adapters:
            names = ", ".join(self._adapters)
            raise UserError(f"its adapter must be one of {names}, got {name!r}")
        return 0 if name is None else self._adapters.index(name)

    def inputs(self, request: Request) -> Tokens:
        """Returns the tokens of the inputs."""
        ids = encode(request.inputs, self._vocabulary)[: self._room]
        return np.concatenate([self._first_ids, ids, self._last_ids])

    def targets(self, request: Request) -> Tokens:
        """Returns the tokens of the targets to score, closed by an end of sequence."""
        assert request.targets is not None
        ids = encode(request.targets, self._vocabulary)[: self.lengths[1] - 1]
        return np.append(ids, self._vocabulary.eos_id).astype(np.int32)

    def prefix(self, request: Request) -> Tokens:
        """Returns the tokens that the target begins with."""
        return encode(request.prefix, self._vocabulary)


class ClassRequestEncoder(RequestEncoder):
    """Encodes requests for a model with classes, as its objective does in training."""

    def __init__(self, objective: ClassObjective, vocabulary: Vocabulary) -> None:
        lengths = (objective.part_length, objective.part_length)
        super().__init__(vocabulary, *lengths, end_inputs=True)
        self.objective = objective

    def is_cut(self, request: Request) -> bool:
        """Whether the objective truncates the inputs of a request.

        Raises:
            UserError: if the inputs name a sentinel that the vocabulary does not have, or the
                request has a prefix or numbers of `Decoding`.
        """
        for name, given in (("prefix", request.prefix), ("decoding", request.decoding)):
            if given:
                raise UserError(f"{name} must be absent with a model of classes, got {given!r}")
        super().is_cut(request)
        self.parts(request)
        return self.objective.is_cut(encode(request.inputs, self._vocabulary), self._vocabulary)

    def parts(self, request: Request) -> list[Example]:
        """Returns the examples of a request, whose classes are not known."""
        ids = encode(request.inputs, self._vocabulary)
        return self.objective.parts(ids, self._vocabulary)

    def result(
        self, parts: Sequence[Example], found: Sequence[Found], number: int
    ) -> dict[str, Any]:
        """Returns the fields that are added to the `number`-th request."""
        text, score, scores = self.objective.answer(parts, found, self._vocabulary)
        several = {"scores": [_finite_score(each, number) for each in scores]} if scores else {}
        return {"prediction": text, "score": _finite_score(score, number), **several}


def encode(text: str, vocabulary: Vocabulary) -> Tokens:
    """Returns the tokens of a text, as `Vocabulary.encode` does for training.

    Raises:
        UserError: if the text names a sentinel that the vocabulary does not have.
    """
    if missing := vocabulary.missing_sentinel(text):
        raise UserError(
            f"{missing} must be one of the vocabulary's {vocabulary.num_sentinels} sentinels, "
            "counted from 0; for literal text set parse_sentinels=False of the vocabulary"
        )
    return vocabulary.encode(text)


def make_predict_answer(
    predict: Predict,
    encoder: RequestEncoder,
    vocabulary: Vocabulary,
    *,
    num_best: int,
    distinct: bool,
) -> Answer:
    """Returns a function that adds `prediction` and its `score` to each request.

    With `num_best` over 1 it also adds the lists `predictions` and `scores`, the best first, which
    are shorter if the search has fewer results.

    Args:
        distinct: whether only the best of the targets with the same text counts.
    """

    def answer(
        params: Any, requests: Sequence[Request], first: int, on_done: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        prompts = [
            Prompt(
                inputs=encoder.inputs(request),
                prefix=encoder.prefix(request),
                number=first + number,
                decoding=request.decoding,
                adapter=encoder.adapter(request),
            )
            for number, request in enumerate(requests)
        ]
        results = []
        for number, targets in enumerate(predict(params, prompts, on_done), start=first + 1):
            best = _best_texts(targets, vocabulary, num_best=num_best, distinct=distinct)
            texts = [text for text, _ in best]
            scores = [_finite_score(score, number) for _, score in best]
            result: dict[str, Any] = {"prediction": texts[0], "score": scores[0]}
            several = {"predictions": texts, "scores": scores}
            results.append({**result, **several} if num_best > 1 else result)
        return results

    return answer


def make_class_answer(predict: PredictClasses, encoder: ClassRequestEncoder) -> Answer:
    """Returns a function that adds the `prediction` of classes and its `score` to each request.

    The result for a ranking has the `scores` of all candidates too.
    """

    def answer(
        params: Any, requests: Sequence[Request], first: int, on_done: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        parts = [encoder.parts(request) for request in requests]
        found = predict_parts(predict, params, parts, on_done)
        return [
            encoder.result(each, of_parts, number)
            for number, (each, of_parts) in enumerate(
                zip(parts, found, strict=True), start=first + 1
            )
        ]

    return answer


def _best_texts(
    targets: Sequence[Target], vocabulary: Vocabulary, *, num_best: int, distinct: bool
) -> list[tuple[str, float]]:
    """Returns the texts of the best targets and their scores."""
    texts = [(vocabulary.decode(target.tokens), target.score) for target in targets]
    if distinct:
        best: dict[str, float] = {}
        for text, score in texts:
            best.setdefault(text, score)
        texts = list(best.items())
    return texts[:num_best]


def _finite_score(score: float, number: int) -> float:
    """Returns the score of the `number`-th object, which JSON must be able to hold."""
    if not math.isfinite(score):
        raise UserError(
            f"object {number:,} has the score {score}: the checkpoint's parameters hold NaN or "
            "infinity, or overflow its dtype; use an earlier checkpoint, or the config.gin of its "
            "run with another T5Config.dtype"
        )
    return score


def make_score_answer(score: Score, encoder: RequestEncoder) -> Answer:
    """Returns a function that adds the `score` and the number of `target_tokens` of the targets."""

    def answer(
        params: Any, requests: Sequence[Request], first: int, on_done: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        examples = [
            {"inputs": encoder.inputs(request), "targets": encoder.targets(request)}
            for request in requests
        ]
        adapters = [encoder.adapter(request) for request in requests]
        likelihoods = score(params, examples, on_done, adapters)
        for number, likelihood in enumerate(likelihoods, start=first + 1):
            _finite_score(likelihood.score, number)
        return [likelihood._asdict() for likelihood in likelihoods]

    return answer
