"""Causal language modelling: every token is predicted from those before it in its window."""

import dataclasses

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Example, Sentinels, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Causal:
    """Windows of `targets_length` tokens over the running text.

    The first token of a window is predicted from the last one of the window before, so every
    token of the text but the very first is a target once.

    >>> example = Causal(targets_length=3)(np.array([7, 8, 9, 7]), np.random.default_rng(0), None)
    >>> example["decoder_inputs"].tolist(), example["targets"].tolist()
    ([7, 8, 9], [8, 9, 7])
    """

    targets_length: int
    lookahead: int = dataclasses.field(default=1, init=False)
    inputs_length: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.targets_length < 1:
            raise UserError(
                f"Causal.targets_length must be at least 1 token, got {self.targets_length}"
            )

    @property
    def tokens_length(self) -> int:
        """The targets and the one token before them."""
        return self.targets_length + 1

    @property
    def total_length(self) -> int:
        """Of inputs and targets together, in tokens."""
        return self.targets_length

    def check(self, vocabulary: Sentinels) -> None:
        """Any vocabulary serves."""

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> "Causal":
        return self

    def __call__(
        self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels | None
    ) -> Example:
        return {"inputs": tokens[:0], "decoder_inputs": tokens[:-1], "targets": tokens[1:]}
