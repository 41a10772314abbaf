"""Ranking: the candidates of a query by a score that the model gives to each of them."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Example, Found, Prediction, Sentinels, Tokens
from t5lite.core.fields import check_counts, field_error, field_name
from t5lite.objectives.lengths import MAX_LENGTH, check_length
from t5lite.objectives.prefixed import framed
from t5lite.objectives.separators import check_separator

_DIGITS = "0 1 2 3 4 5 6 7 8 9"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """The relevance of each candidate of a query, predicted at the candidate's first token.

    The inputs are the query and its candidates, each after a separator. The target is the relevance
    of all candidates in their order: whole numbers from 0, separated by spaces. The model reads
    each candidate with the query by itself, as (query, separator, candidate); in training those of
    a query share a row, so that a loss compares their scores.

    Args:
        pair_length: of the longest query with one candidate, in tokens including the separator, the
            first token that the vocabulary may have and the end of sequence. Longer candidates are
            truncated, and with them a query of more than half the tokens.
        num_candidates: the most candidates of a query that losses compare: the first ones of its
            list, the last of them replaced by the most relevant of all if that comes later.
            Predictions rank all candidates.
        separator: one token before each candidate, such as '[SEP]' of BERT.

    Raises:
        UserError: for a length or a count out of range.

    Source: Nogueira and Cho, Passage Re-ranking with BERT; Zhuang et al., RankT5.
    """

    # The types of tokens distinguish the query and its candidate.
    has_types: ClassVar[bool] = True
    # A template of a task joins a list with this.
    list_separator: ClassVar[str] = " "
    span_length: ClassVar[int] = 0

    pair_length: int
    num_candidates: int = 8
    separator: str = "<extra_id_0>"

    def __post_init__(self) -> None:
        check_length(self, "pair_length", 5)
        check_counts(self, "num_candidates")
        if self.inputs_length > MAX_LENGTH:
            rule = f"at most {MAX_LENGTH // self.pair_length}, for rows of {MAX_LENGTH:,} tokens"
            raise field_error(self, "num_candidates", rule)

    @property
    def inputs_length(self) -> int:
        """Tokens of a query with all candidates of a row."""
        return self.pair_length * self.num_candidates

    @property
    def targets_length(self) -> int:
        """The same as the inputs: a target for each position."""
        return self.inputs_length

    @property
    def total_length(self) -> int:
        """Tokens of the inputs; targets take no further positions."""
        return self.inputs_length

    @property
    def part_length(self) -> int:
        """Tokens of a query with one candidate."""
        return self.pair_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError if the separator is not one token, or numbers are not known."""
        check_separator(self, vocabulary)
        if vocabulary.decode(vocabulary.encode(_DIGITS)).split() != _DIGITS.split():
            raise UserError(
                f"Ranking needs a vocabulary that encodes numbers, got {_DIGITS!r} as "
                f"{vocabulary.decode(vocabulary.encode(_DIGITS))!r}"
            )

    def from_pair(self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> Example:
        """Returns the example of a query with its candidates and their relevance.

        Raises:
            UserError: if the inputs have no separator, or a candidate has no relevance.

        >>> from t5lite.data.text.vocabularies import ByteVocabulary
        >>> encode = ByteVocabulary().encode
        >>> example = Ranking(pair_length=6).from_pair(
        ...     encode("q<extra_id_0>a<extra_id_0>b"), encode("0 2"), ByteVocabulary())
        >>> for name in ("candidates", "targets", "target_weights"):
        ...     print(example[name])
        [1 1 1 1 2 2 2 2]
        [0 0 0 0 2 0 0 0]
        [1 0 0 0 1 0 0 0]
        """
        relevance = self._relevance(vocabulary.decode(targets))
        parts = self.parts(inputs, vocabulary)
        if len(parts) != len(relevance):
            raise UserError(
                f"Ranking needs the relevance of each candidate, got {len(relevance)} for "
                f"{len(parts)} candidates of {vocabulary.decode(inputs)[:60]!r}"
            )
        kept = list(range(min(len(parts), self.num_candidates)))
        best = max(range(len(parts)), key=relevance.__getitem__)
        if best not in kept:
            kept[-1] = best
        for number in kept:
            parts[number]["targets"][0] = relevance[number]
        chosen = [parts[number] for number in kept]
        lengths = [len(part["inputs"]) for part in chosen]
        example = {name: np.concatenate([part[name] for part in chosen]) for name in chosen[0]}
        example["candidates"] = np.repeat(np.arange(len(kept), dtype=np.int32) + 1, lengths)
        return example

    def parts(self, inputs: Tokens, vocabulary: Sentinels) -> list[Example]:
        """Returns the example of each candidate, whose relevance is not known.

        Raises:
            UserError: if the inputs have no separator.
        """
        query, candidates = self._separated(inputs, vocabulary)
        return [self._part(query, candidate, vocabulary) for candidate in candidates]

    def is_cut(self, inputs: Tokens, vocabulary: Sentinels) -> bool:
        """Whether a candidate, or the query, is truncated."""
        query, candidates = self._separated(inputs, vocabulary)
        return len(query) + max(map(len, candidates)) > self._room(vocabulary)

    def prediction(self, example: Example, numbers: Tokens, vocabulary: Sentinels) -> str:
        """Returns the relevance of the candidates of an example, separated by spaces."""
        return " ".join(str(number) for number in numbers[example["target_weights"] > 0].tolist())

    def answer(
        self, parts: Sequence[Example], found: Sequence[Found], vocabulary: Sentinels
    ) -> Prediction:
        """Returns the numbers of the candidates, counted from 0, the highest score first.

        Of equal scores the later candidate comes first: lists often begin with what is relevant,
        and a model that does not distinguish candidates must not seem right.
        """
        scores = tuple(score for _, (score,) in found)
        order = sorted(range(len(scores)), key=lambda number: (-scores[number], -number))
        return Prediction(" ".join(map(str, order)), scores[order[0]], scores)

    def _relevance(self, text: str) -> list[int]:
        numbers = text.split()
        if wrong := [n for n in numbers if not (n.isdecimal() and int(n) < 1 << 24)]:
            raise UserError(
                "Ranking needs whole numbers from 0 to 2**24 as relevance, separated by spaces, "
                f"got {wrong[0]!r}"
            )
        return [int(number) for number in numbers]

    def _separated(self, inputs: Tokens, vocabulary: Sentinels) -> tuple[Tokens, list[Tokens]]:
        """Returns the query and its candidates."""
        (separator,) = vocabulary.encode(self.separator)
        at = np.flatnonzero(inputs == separator)
        if not len(at):
            text = vocabulary.decode(inputs)
            raise UserError(
                f"{field_name(self, 'separator')} must be before every candidate, got none of "
                f"{self.separator!r} in {text[:60]!r}; write "
                f"Task.inputs = '{{query}}{self.separator}{{documents:{self.separator}}}'"
            )
        query, *candidates = np.split(inputs, at)
        return query, [candidate[1:] for candidate in candidates]

    def _room(self, vocabulary: Sentinels) -> int:
        """Tokens of a query and a candidate without those around them."""
        ends = (*vocabulary.first_input_ids, *vocabulary.last_input_ids)
        return self.pair_length - len(ends) - 1

    def _part(self, query: Tokens, candidate: Tokens, vocabulary: Sentinels) -> Example:
        room = self._room(vocabulary)
        query = query[: max(room // 2, room - len(candidate))]
        separator = vocabulary.encode(self.separator)
        joined = np.concatenate([query, separator, candidate])
        ids = framed(joined, self.pair_length, vocabulary)
        start = len(vocabulary.first_input_ids) + len(query) + 1
        weights = np.zeros_like(ids)
        weights[0] = 1
        return {
            "inputs": ids,
            "targets": np.zeros_like(ids),
            "target_weights": weights,
            "token_types": (np.arange(len(ids)) >= start).astype(np.int32),
        }
