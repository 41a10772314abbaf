"""From requests to results: texts to tokens, a model's targets or scores, and texts again."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Tokens
from t5lite.data.text.vocabularies import Vocabulary
from t5lite.inference.decoding import check_target_lengths
from t5lite.inference.predict import Predict, Prompt
from t5lite.inference.requests import Request
from t5lite.inference.score import Score

# From parameters, requests, the number of the first of them, and what is told how many of them are
# answered, to what is added to each.
Answer = Callable[[Any, Sequence[Request], int, Callable[[int], None]], list[dict[str, Any]]]


class Reader:
    """Makes tokens of requests; what is too long is cut.

    Args:
        inputs_length, targets_length: the most tokens of each.
        end_inputs: whether inputs are closed by an end of sequence.
    """

    def __init__(
        self, vocabulary: Vocabulary, inputs_length: int, targets_length: int, *, end_inputs: bool
    ) -> None:
        self._vocabulary, self._end_inputs = vocabulary, end_inputs
        self.lengths = (inputs_length, targets_length)

    def is_cut(self, request: Request) -> bool:
        """Whether something of a request is too long.

        Raises:
            UserError: where it names a sentinel that there is not, or its prefix is too long.
        """
        inputs, targets = self.lengths
        if len(self.prefix(request)) > targets:
            raise UserError(f"its prefix must be at most {targets} tokens (infer.targets_length)")
        check_target_lengths(request.decoding, targets, "infer.targets_length")
        is_long = len(encode(request.inputs, self._vocabulary)) > inputs - self._end_inputs
        if request.targets is not None:
            is_long |= len(encode(request.targets, self._vocabulary)) > targets - 1
        return is_long

    def inputs(self, request: Request) -> Tokens:
        """Returns the tokens of the inputs."""
        return self._closed(request.inputs, self.lengths[0], end=self._end_inputs)

    def targets(self, request: Request) -> Tokens:
        """Returns the tokens of the targets that are to be scored, closed by an end."""
        assert request.targets is not None
        return self._closed(request.targets, self.lengths[1], end=True)

    def prefix(self, request: Request) -> Tokens:
        """Returns the tokens that the target begins with."""
        return encode(request.prefix, self._vocabulary)

    def _closed(self, text: str, length: int, *, end: bool) -> Tokens:
        ids = encode(text, self._vocabulary)[: length - end]
        return np.append(ids, self._vocabulary.eos_id).astype(np.int32) if end else ids


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


def predicted(predict: Predict, reader: Reader, vocabulary: Vocabulary, *, num_best: int) -> Answer:
    """Returns what adds `prediction` and its `score`; for several also `predictions`, `scores`."""

    def answer(
        params: Any, requests: Sequence[Request], first: int, on_done: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        prompts = [
            Prompt(
                inputs=reader.inputs(request),
                prefix=reader.prefix(request),
                number=first + number,
                decoding=request.decoding,
            )
            for number, request in enumerate(requests)
        ]
        results = []
        for targets in predict(params, prompts, on_done):
            texts = [vocabulary.decode(target.tokens) for target in targets[:num_best]]
            scores = [target.score for target in targets[:num_best]]
            result: dict[str, Any] = {"prediction": texts[0], "score": scores[0]}
            several = {"predictions": texts, "scores": scores}
            results.append({**result, **several} if num_best > 1 else result)
        return results

    return answer


def scored(score: Score, reader: Reader) -> Answer:
    """Returns what adds the `score` of the targets, and how many `target_tokens` they have."""

    def answer(
        params: Any, requests: Sequence[Request], first: int, on_done: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        del first
        examples = [
            {"inputs": reader.inputs(request), "targets": reader.targets(request)}
            for request in requests
        ]
        return [found._asdict() for found in score(params, examples, on_done)]

    return answer
