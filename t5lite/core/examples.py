"""What objectives, vocabularies and the data pipeline are to each other."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

# Of any length: what goes into an objective and what comes out differ.
Tokens = Int[np.ndarray, "_"]

# `inputs` and `targets`, either of which may be empty; where the decoder is not given the targets
# one place later, `decoder_inputs`; where not every target counts, `target_weights` of 0 and 1.
Example = dict[str, Tokens]


@runtime_checkable
class Sentinels(Protocol):
    """What an objective needs to know of a vocabulary."""

    @property
    def eos_id(self) -> int: ...
    @property
    def num_sentinels(self) -> int: ...
    @property
    def text_ids(self) -> range: ...
    def sentinel(self, index: int) -> int: ...
    def encode(self, text: str | bytes) -> Tokens: ...
    def decode(self, ids: Tokens) -> str: ...
    def word_starts(self, ids: Tokens) -> Tokens: ...
    def __hash__(self) -> int: ...


@runtime_checkable
class Denoiser(Protocol):
    """Makes an example from a piece of text.

    - `tokens_length`: how many tokens of the text one example is made from.
    - `lookahead`: how many of those belong to the next example too.
    - a call makes the example; `rng` decides all that is random.
    """

    @property
    def tokens_length(self) -> int: ...
    @property
    def lookahead(self) -> int: ...
    def __call__(
        self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels
    ) -> Example: ...


class Lengths(Protocol):
    """What every objective says of its examples.

    - `inputs_length` (0 for none), `targets_length`: what an example never exceeds, in tokens.
    - `total_length`: what both together never exceed.
    - `check(vocabulary)`: raises a UserError where the vocabulary cannot serve.
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
    """Makes examples from running text, each with the denoiser that `choose` returns for it."""

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> Denoiser: ...


@runtime_checkable
class PairObjective(Lengths, Protocol):
    """Makes examples from pairs of texts, an input and its target."""

    def from_pair(self, inputs: Tokens, targets: Tokens, vocabulary: Sentinels) -> Example: ...


Objective = TextObjective | PairObjective
