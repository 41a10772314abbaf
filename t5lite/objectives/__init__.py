"""What a model is asked to predict: token ids in, inputs and targets out. NumPy only.

An objective is a frozen dataclass with
- `tokens_length`: how many tokens of the text one example is made from,
- `lookahead`: how many of those belong to the next example too,
- `inputs_length` (0 for none) and `targets_length`: what an example never exceeds, in tokens,
- `check(vocabulary)`: raises a UserError where the vocabulary cannot serve,
- `__call__(tokens, rng, vocabulary)`: makes the example; `rng` decides all that is random.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

# Of any length: what goes in and what comes out differ.
Tokens = Int[np.ndarray, "_"]


@runtime_checkable
class Vocabulary(Protocol):
    """What an objective needs to know of a vocabulary."""

    @property
    def eos_id(self) -> int: ...
    @property
    def num_sentinels(self) -> int: ...
    def sentinel(self, index: int) -> int: ...


@runtime_checkable
class Objective(Protocol):
    """See the module's docstring."""

    @property
    def tokens_length(self) -> int: ...
    @property
    def lookahead(self) -> int: ...
    @property
    def inputs_length(self) -> int: ...
    @property
    def targets_length(self) -> int: ...
    def check(self, vocabulary: Vocabulary) -> None: ...
    def __call__(
        self, tokens: Tokens, rng: np.random.Generator, vocabulary: Vocabulary
    ) -> dict[str, Tokens]: ...
