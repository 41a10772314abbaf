"""What objectives, vocabularies and the data pipeline are to each other."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

# Of any length: what goes into an objective and what comes out differ.
Tokens = Int[np.ndarray, "_"]


@runtime_checkable
class Sentinels(Protocol):
    """What an objective needs to know of a vocabulary."""

    @property
    def eos_id(self) -> int: ...
    @property
    def num_sentinels(self) -> int: ...
    def sentinel(self, index: int) -> int: ...


@runtime_checkable
class Objective(Protocol):
    """Makes an example, inputs and targets, from a piece of text.

    - `tokens_length`: how many tokens of the text one example is made from.
    - `lookahead`: how many of those belong to the next example too.
    - `inputs_length` (0 for none), `targets_length`: what an example never exceeds, in tokens.
    - `check(vocabulary)`: raises a UserError where the vocabulary cannot serve.
    - a call makes the example; `rng` decides all that is random.
    """

    @property
    def tokens_length(self) -> int: ...
    @property
    def lookahead(self) -> int: ...
    @property
    def inputs_length(self) -> int: ...
    @property
    def targets_length(self) -> int: ...
    def check(self, vocabulary: Sentinels) -> None: ...
    def __call__(
        self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels
    ) -> dict[str, Tokens]: ...
