"""Causal language modelling: predict every token from the tokens before it in its window."""

import dataclasses
from typing import ClassVar

import numpy as np

from t5lite.core.examples import Example, Sentinels, Tokens
from t5lite.objectives.lengths import check_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Causal:
    """Windows of `targets_length` tokens over running text.

    The first token of a window is predicted from the last token of the window before it, so every
    token of the text except the very first is a target exactly once.

    Args:
        targets_length: tokens in a window.

    Raises:
        UserError: if the length is out of range.

    >>> example = Causal(targets_length=3)(np.array([7, 8, 9, 7]), np.random.default_rng(0), None)
    >>> example["decoder_inputs"].tolist(), example["targets"].tolist()
    ([7, 8, 9], [8, 9, 7])
    """

    # Targets are the end of the text, so that each has the weight of its token in a dialogue.
    targets_end_text: ClassVar[bool] = True

    targets_length: int
    lookahead: int = dataclasses.field(default=1, init=False)
    inputs_length: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        check_length(self, "targets_length", 1)

    @property
    def tokens_length(self) -> int:
        """The targets and the token before them."""
        return self.targets_length + 1

    @property
    def total_length(self) -> int:
        """Tokens of inputs and targets together."""
        return self.targets_length

    def check(self, vocabulary: Sentinels) -> None:
        """Accepts every vocabulary."""

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> "Causal":
        return self

    def __call__(
        self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels | None
    ) -> Example:
        return {"inputs": tokens[:0], "decoder_inputs": tokens[:-1], "targets": tokens[1:]}
