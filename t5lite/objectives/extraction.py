"""Extractive answers: the tokens of a context between which the answer to a question lies."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import (
    SPAN_END,
    SPAN_START,
    Example,
    Found,
    Prediction,
    Sentinels,
    Tokens,
)
from t5lite.core.fields import check_number, field_error, field_name
from t5lite.objectives.answer_location import located
from t5lite.objectives.lengths import check_length
from t5lite.objectives.prefixed import exceeds, framed
from t5lite.objectives.separators import check_separator

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """The first and the last token of an answer, within the context of a question.

    The inputs are the question, the separator and the context. The target is the answer, and after
    another separator, if it has one, the text of the context before the answer, which tells one
    occurrence from the others. Without that text the first time counts that the context has the
    answer, between the borders of words if possible. The empty answer is the first token of the
    inputs, which no other answer holds, and so is an answer that is not whole in the tokens of an
    example. An answer that the context does not have is not learned.

    Args:
        inputs_length: of the longest example, in tokens including the first token that the
            vocabulary may have and the end of sequence.
        separator: one token between question and context, such as '[SEP]' of BERT.
        span_length: of the longest predicted answer, in tokens.
        stride: tokens between the beginnings of two windows of a longer context, each an example
            with the question, which is cut to half of them if it is long; at most the tokens that
            the question leaves to a window. None truncates the context.
        no_answer_threshold: there is no answer if its logits, the lowest of all windows, are higher
            by more than this than those of the best span of all windows.

    Raises:
        UserError: for a number out of range.

    Source: Devlin et al., BERT, sections 4.2 and 4.3, and its run_squad.py for windows.
    Differs: an answer may begin in any window that has it, not only in that with the most context.
    """

    # The types of tokens distinguish the question and its context.
    has_types: ClassVar[bool] = True

    inputs_length: int
    separator: str = "<extra_id_0>"
    span_length: int = 30
    stride: int | None = None
    no_answer_threshold: float = 0.0

    def __post_init__(self) -> None:
        check_length(self, "inputs_length", 4)
        check_length(self, "span_length", 1)
        if self.stride is not None:
            check_length(self, "stride", 1)
            if self.stride >= self.inputs_length:
                rule = f"under {field_name(self, 'inputs_length')} ({self.inputs_length}), or None"
                raise field_error(self, "stride", rule)
        owner = field_name(self, "no_answer_threshold")
        check_number(owner, self.no_answer_threshold, "finite", lambda x: True)

    @property
    def targets_length(self) -> int:
        """The same as the inputs: every token may begin or end an answer."""
        return self.inputs_length

    @property
    def total_length(self) -> int:
        """Tokens of the inputs; targets take no further positions."""
        return self.inputs_length

    @property
    def part_length(self) -> int:
        """The same as the inputs: of one window."""
        return self.inputs_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError if the separator is not one token of the vocabulary."""
        check_separator(self, vocabulary)

    def from_pair(self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the first of `examples_of_pair`.

        Raises:
            UserError: if the inputs have no separator.

        >>> from t5lite.data.text.vocabularies import ByteVocabulary
        >>> encode = ByteVocabulary().encode
        >>> example = Extraction(inputs_length=9).from_pair(
        ...     encode("q<extra_id_0>ab cd"), encode("cd"), ByteVocabulary())
        >>> example["targets"].tolist(), example["target_weights"].tolist()
        ([0, 0, 0, 0, 0, 1, 2, 0], [1, 0, 1, 1, 1, 1, 1, 0])
        """
        return self.examples_of_pair(inputs, targets, vocabulary)[0]

    def examples_of_pair(
        self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels
    ) -> list[Example]:
        """Returns the windows of a question with its context, and of the answer.

        Raises:
            UserError: if the inputs have no separator.
        """
        windows = self._windows(inputs, vocabulary)
        answer_ids, *before_ids = self._split(targets, vocabulary)
        answer = vocabulary.decode(answer_ids).strip()
        before = vocabulary.decode(before_ids[0]) if before_ids else None
        span = None
        if answer:
            _, context = self._split(inputs, vocabulary)
            span = located(context, answer, before, vocabulary)
            if span is None:
                _warn_of_unknown()
                return [window.example for window in windows]
        for window in windows:
            first, last = window.span(span)
            window.example["targets"][first] += SPAN_START
            window.example["targets"][last] += SPAN_END
        return [window.example for window in windows]

    def parts(self, inputs: Tokens, vocabulary: Sentinels) -> list[Example]:
        """Returns the windows of a question with its context whose answer is not known."""
        return [window.example for window in self._windows(inputs, vocabulary)]

    def is_cut(self, inputs: Tokens, vocabulary: Sentinels) -> bool:
        """Whether the context is truncated or, if it is read in windows, the question."""
        if self.stride is None:
            return exceeds(inputs, self.inputs_length, vocabulary)
        question, context = self._split(inputs, vocabulary)
        return len(question) > self._question_length(len(context), vocabulary)

    def prediction(self, example: Example, numbers: Tokens, vocabulary: Sentinels) -> str:
        """Returns the text of the answer in one window, which may be empty."""
        first = int(np.argmax(numbers & SPAN_START > 0))
        last = int(np.argmax(numbers & SPAN_END > 0))
        return vocabulary.decode(example["inputs"][first : last + 1]).strip() if last else ""

    def answer(
        self, parts: Sequence[Example], found: Sequence[Found], vocabulary: Sentinels
    ) -> Prediction:
        """Returns the best span of all windows, or the empty text, with its log-probability.

        Windows are compared by logits; the log-probability is that within the window.
        """
        best = max(range(len(found)), key=lambda window: found[window].scores[0])
        logits, _, total = found[best].scores
        none, total_of_none = min(each.scores[1:] for each in found)
        if none - logits > self.no_answer_threshold:
            return Prediction("", none - total_of_none)
        text = self.prediction(parts[best], found[best].numbers, vocabulary)
        return Prediction(text, logits - total)

    def answer_of(self, target: str) -> str:
        """Returns the answer in the text of a target."""
        return target.partition(self.separator)[0]

    def _split(self, ids: Tokens, vocabulary: Sentinels) -> list[Tokens]:
        """Returns the tokens before and after the first separator, or all without one."""
        (separator,) = vocabulary.encode(self.separator)
        at = np.flatnonzero(ids == separator)[:1]
        return [ids[: at[0]], ids[at[0] + 1 :]] if len(at) else [ids]

    def _question_length(self, context_length: int, vocabulary: Sentinels) -> int:
        """Tokens of the longest question in a window."""
        ends = (*vocabulary.first_input_ids, *vocabulary.last_input_ids)
        room = self.inputs_length - len(ends) - 1
        return max(room // 2, room - context_length)

    def _windows(self, inputs: Tokens, vocabulary: Sentinels) -> "list[_Window]":
        question, *contexts = self._split(inputs, vocabulary)
        if not contexts:
            text = vocabulary.decode(inputs)
            raise UserError(
                f"{field_name(self, 'separator')} must be in every input, got none of "
                f"{self.separator!r} in {text[:60]!r}; write "
                f"Task.inputs = '{{question}}{self.separator}{{context}}'"
            )
        (context,) = contexts
        if self.stride is None:
            return [self._window(question, context, 0, vocabulary)]
        question = question[: self._question_length(len(context), vocabulary)]
        ends = (*vocabulary.first_input_ids, *vocabulary.last_input_ids)
        size = max(1, self.inputs_length - len(ends) - 1 - len(question))
        step = min(self.stride, size)
        count = 1 + max(0, -(-(len(context) - size) // step))
        starts = range(0, count * step, step)
        return [
            self._window(question, context[start : start + size], start, vocabulary)
            for start in starts
        ]

    def _window(
        self, question: Tokens, context: Tokens, start: int, vocabulary: Sentinels
    ) -> "_Window":
        joined = np.concatenate([question, vocabulary.encode(self.separator), context])
        ids = framed(joined, self.inputs_length, vocabulary)
        first = len(vocabulary.first_input_ids) + len(question) + 1
        stop = len(ids) - len(vocabulary.last_input_ids)
        weights = np.zeros_like(ids)
        weights[first:stop] = 1
        weights[0] = 1
        types = (np.arange(len(ids)) >= first).astype(np.int32)
        example = {"inputs": ids, "targets": np.zeros_like(ids)}
        example |= {"target_weights": weights, "token_types": types}
        return _Window(example, start, first, stop)


class _Window(NamedTuple):
    """The example of a part of a context.

    Args:
        start: number of the first token of the context.
        first, stop: positions of the context in the example.
    """

    example: Example
    start: int
    first: int
    stop: int

    def span(self, of_context: tuple[int, int] | None) -> tuple[int, int]:
        """Returns the positions of a span; those of no answer if it is not whole in the window."""
        if of_context is None:
            return 0, 0
        first, last = (self.first + token - self.start for token in of_context)
        return (first, last) if self.first <= first and last < self.stop else (0, 0)


@functools.cache
def _warn_of_unknown() -> None:
    log.warning(
        "Extraction: an answer is not in its context; it and others like it are not learned"
    )
