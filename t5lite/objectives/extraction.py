"""Extractive answers: the tokens of a context between which the answer to a question lies."""

import bisect
import dataclasses
import functools
import logging
import re
from typing import ClassVar

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import SPAN_END, SPAN_START, Example, Sentinels, Tokens
from t5lite.core.fields import field_error, field_name
from t5lite.objectives.lengths import check_length
from t5lite.objectives.prefixed import framed

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """The first and the last token of an answer, within the context of a question.

    The inputs are the question, the separator and the context. The target is the answer; the first
    time that the context has it, between the borders of words if possible, counts. The empty answer
    is the first token of the inputs, which no other answer holds, and so is an answer that
    truncation removes. An answer that the context does not have is not learned.

    Args:
        inputs_length: of the longest example, in tokens including the first token that the
            vocabulary may have and the end of sequence; longer contexts are truncated.
        separator: one token between question and context, such as '[SEP]' of BERT.
        span_length: of the longest predicted answer, in tokens.

    Raises:
        UserError: for a length out of range.

    Source: Devlin et al., BERT, sections 4.2 and 4.3.
    Differs: a long context is truncated instead of being read in several overlapping parts.
    """

    # The types of tokens distinguish the question and its context.
    has_types: ClassVar[bool] = True

    inputs_length: int
    separator: str = "<extra_id_0>"
    span_length: int = 30

    def __post_init__(self) -> None:
        check_length(self, "inputs_length", 4)
        check_length(self, "span_length", 1)

    @property
    def targets_length(self) -> int:
        """The same as the inputs: every token may begin or end an answer."""
        return self.inputs_length

    @property
    def total_length(self) -> int:
        """Tokens of the inputs; targets take no further positions."""
        return self.inputs_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError if the separator is not one token of the vocabulary."""
        ids = vocabulary.encode(self.separator)
        if len(ids) != 1:
            rule = f"one token of the vocabulary, which has {len(ids)} for it"
            raise field_error(self, "separator", rule, "use a sentinel or an added token")

    def from_pair(self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of a question with its context, and of the answer.

        Raises:
            UserError: if the inputs have no separator.

        >>> from t5lite.data.text.vocabularies import ByteVocabulary
        >>> encode = ByteVocabulary().encode
        >>> example = Extraction(inputs_length=9).from_pair(
        ...     encode("q<extra_id_0>ab cd"), encode("cd"), ByteVocabulary())
        >>> example["targets"].tolist(), example["target_weights"].tolist()
        ([0, 0, 0, 0, 0, 1, 2, 0], [1, 0, 1, 1, 1, 1, 1, 0])
        """
        example = self.from_inputs(inputs, vocabulary)
        answer = vocabulary.decode(targets).strip()
        first = last = 0
        if answer:
            start = self._context_start(inputs, vocabulary)
            span = _located(inputs[start:], answer, vocabulary)
            if span is None:
                _warn_of_unknown()
                return example
            start += len(vocabulary.first_input_ids)
            stop = len(example["inputs"]) - len(vocabulary.last_input_ids)
            if start + span[1] < stop:
                first = start + span[0]
                last = start + span[1]
        example["targets"][first] += SPAN_START
        example["targets"][last] += SPAN_END
        return example

    def from_inputs(self, inputs: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of a question with its context whose answer is not known."""
        ids = framed(inputs, self.inputs_length, vocabulary)
        start = self._context_start(inputs, vocabulary) + len(vocabulary.first_input_ids)
        weights = np.zeros_like(ids)
        weights[start : len(ids) - len(vocabulary.last_input_ids)] = 1
        weights[0] = 1
        types = (np.arange(len(ids)) >= start).astype(np.int32)
        targets = np.zeros_like(ids)
        return {"inputs": ids, "targets": targets, "target_weights": weights, "token_types": types}

    def prediction(self, example: Example, numbers: Tokens, vocabulary: Sentinels) -> str:
        """Returns the text of the predicted answer, which may be empty."""
        first = int(np.argmax(numbers & SPAN_START > 0))
        last = int(np.argmax(numbers & SPAN_END > 0))
        return vocabulary.decode(example["inputs"][first : last + 1]).strip() if last else ""

    def _context_start(self, inputs: Tokens, vocabulary: Sentinels) -> int:
        """Returns the position after the separator."""
        (separator,) = vocabulary.encode(self.separator)
        found = np.flatnonzero(inputs == separator)
        if not len(found):
            text = vocabulary.decode(inputs)
            raise UserError(
                f"{field_name(self, 'separator')} must be in every input, got none of "
                f"{self.separator!r} in {text[:60]!r}; write "
                f"Task.inputs = '{{question}}{self.separator}{{context}}'"
            )
        return int(found[0]) + 1


def _located(context: Tokens, answer: str, vocabulary: Sentinels) -> tuple[int, int] | None:
    """Returns the first and the last token of an answer; None if the context does not have it."""
    text = vocabulary.decode(context)
    whole = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text)
    at = whole.start() if whole else text.find(answer)
    if at < 0:
        return None

    def length(tokens: int) -> int:
        return len(vocabulary.decode(context[:tokens]))

    counts = range(len(context) + 1)
    # The most tokens whose text ends at the beginning of the answer, or before it.
    first = bisect.bisect_right(counts, at, key=length) - 1
    stop = bisect.bisect_left(counts, at + len(answer), key=length)
    # The first bytes of a character have a text too, a replacement character.
    for end in range(stop, min(stop + 4, len(context) + 1)):
        if answer in vocabulary.decode(context[first:end]):
            return first, end - 1
    return None


@functools.cache
def _warn_of_unknown() -> None:
    log.warning(
        "Extraction: an answer is not in its context; it and others like it are not learned"
    )
