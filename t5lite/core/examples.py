"""Protocols between objectives, vocabularies and the data pipeline."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

# The token before the first target, unless `T5Config.start_token` says otherwise: T5 starts with
# the padding id.
START_TOKEN = 0

# Of any length: an objective returns other lengths than it receives.
Tokens = Int[np.ndarray, "_"]

# `inputs` and `targets`, either of which may be empty; `decoder_inputs` if they are not the targets
# shifted right by one; `target_weights` of 0 and 1 if not every target counts; `token_types` of the
# inputs if they have several parts; `pair_labels` if these may follow each other; `candidates`, the
# number of the candidate that each input belongs to, counted from 1, if a query has several.
# `task_id`, one number, in the examples of a mixture.
Example = dict[str, Tokens]


# The target of a token that begins a span, and of one that ends it; their sum if it does both.
SPAN_START = 1
SPAN_END = 2


class Found(NamedTuple):
    """What a model predicts for one example.

    Args:
        numbers: at each position of the inputs; 0 where nothing is predicted.
        scores: one or several, by the structure of its classes; see `inference.class_predictions`.
    """

    numbers: Tokens
    scores: tuple[float, ...]


class Prediction(NamedTuple):
    """What is predicted for an input.

    Args:
        score: of the text.
        scores: of each candidate of a ranking, in their order.
    """

    text: str
    score: float
    scores: tuple[float, ...] = ()


@runtime_checkable
class Sentinels(Protocol):
    """The part of a vocabulary that objectives use."""

    @property
    def eos_id(self) -> int: ...
    @property
    def num_sentinels(self) -> int: ...
    @property
    def text_ids(self) -> range: ...
    @property
    def first_input_ids(self) -> tuple[int, ...]: ...
    @property
    def last_input_ids(self) -> tuple[int, ...]: ...
    @property
    def mask_id(self) -> int | None: ...
    def sentinel(self, index: int) -> int: ...
    def encode(self, text: str | bytes) -> Tokens: ...
    def decode(self, ids: Tokens) -> str: ...
    def word_starts(self, ids: Tokens) -> Tokens: ...
    def word_numbers(self, ids: Tokens) -> Tokens: ...
    def __hash__(self) -> int: ...


@runtime_checkable
class Denoiser(Protocol):
    """Makes one example from a stretch of text.

    - `tokens_length`: tokens of text per example.
    - `lookahead`: how many of these are also the first tokens of the next example.
    - `__call__` makes the example; all randomness comes from `rng`.
    """

    @property
    def tokens_length(self) -> int: ...
    @property
    def lookahead(self) -> int: ...
    def __call__(
        self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels
    ) -> Example: ...


class Lengths(Protocol):
    """Upper bounds on the lengths of an objective's examples, in tokens.

    - `inputs_length` (0 for none) and `targets_length`.
    - `total_length`: of inputs and targets together.
    - `check(vocabulary)`: raises a UserError if the objective cannot use the vocabulary.
    """

    @property
    def inputs_length(self) -> int: ...
    @property
    def targets_length(self) -> int: ...
    @property
    def total_length(self) -> int: ...
    def check(self, vocabulary: Sentinels) -> None: ...


@runtime_checkable
class TextObjective(Lengths, Protocol):
    """Makes examples from running text, each with a denoiser drawn by `choose`."""

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> Denoiser: ...


@runtime_checkable
class PairObjective(Lengths, Protocol):
    """Makes examples from pairs of an input text and a target text.

    An objective that makes several of one pair has a method `examples_of_pair`, with the same
    arguments, which returns all of them.
    """

    def from_pair(self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> Example: ...


@runtime_checkable
class ClassObjective(PairObjective, Protocol):
    """Makes examples whose targets are classes, and texts of the classes that a model predicts.

    - `parts`: the examples that a model reads for an input, one or several, without known targets;
      their weights are over 0 where something is predicted.
    - `part_length`: of the longest of them, in tokens.
    - `is_cut`: whether the parts lack tokens of an input that is too long.
    - `span_length`: of the longest span that is predicted, in tokens; 0 if none is.
    - `prediction`: the text of the numbers at each position of the inputs of one example.
    - `answer`: what the model's results for all parts of an input amount to.
    """

    @property
    def part_length(self) -> int: ...
    @property
    def span_length(self) -> int: ...
    def parts(self, inputs: Tokens, vocabulary: Sentinels) -> list[Example]: ...
    def is_cut(self, inputs: Tokens, vocabulary: Sentinels) -> bool: ...
    def prediction(self, example: Example, numbers: Tokens, vocabulary: Sentinels) -> str: ...
    def answer(
        self, parts: Sequence[Example], found: Sequence[Found], vocabulary: Sentinels
    ) -> Prediction: ...


Objective = TextObjective | PairObjective


def examples_of_pair(
    objective: PairObjective, inputs: Tokens, targets: Tokens, vocabulary: Sentinels
) -> Sequence[Example]:
    """Returns the examples that an objective makes from a pair, at least one."""
    if (several := getattr(objective, "examples_of_pair", None)) is not None:
        made: Sequence[Example] = several(inputs, targets, vocabulary)
        return made
    return [objective.from_pair(inputs, targets, vocabulary)]
