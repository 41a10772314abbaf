"""Masked language modelling: an encoder restores tokens that were hidden from it."""

import dataclasses

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Example, Sentinels, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Tokens chosen one by one are hidden; the targets are the whole text, place by place.

    Of the chosen, 80 % become the first sentinel, 10 % another token of the text's kind, and 10 %
    stay; all of them count, and nothing else does.

    Args:
        inputs_length: of the longest example, in tokens, its end of sequence included.
        noise_density: share of tokens that is chosen, in (0, 1); at least one is.

    Raises:
        UserError: for numbers out of these ranges.

    Source: Devlin et al., BERT, section 3.1.
    Differs: the number of chosen tokens is exact and not binomial.
    """

    inputs_length: int
    noise_density: float = 0.15
    lookahead: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise UserError(f"MaskedLM.noise_density must be in (0, 1), got {self.noise_density}")
        if self.inputs_length < 2:
            raise UserError(
                f"MaskedLM.inputs_length must be at least 2 tokens, got {self.inputs_length}"
            )

    @property
    def tokens_length(self) -> int:
        """The inputs without their end of sequence."""
        return self.inputs_length - 1

    @property
    def targets_length(self) -> int:
        """As long as the inputs, place by place."""
        return self.inputs_length

    @property
    def total_length(self) -> int:
        """Of inputs and targets together, in tokens."""
        return self.inputs_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError where there is no sentinel to hide a token with."""
        if vocabulary.num_sentinels < 1:
            raise UserError("MaskedLM needs a vocabulary with num_sentinels of at least 1, got 0")

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> "MaskedLM":
        return self

    def __call__(self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels) -> Example:
        num_chosen = max(1, round(len(tokens) * self.noise_density))
        chosen = rng.permutation(len(tokens))[:num_chosen]
        kind = rng.random(num_chosen)
        other = rng.integers(vocabulary.text_ids.start, vocabulary.text_ids.stop, num_chosen)
        inputs = tokens.copy()
        hidden, replaced = chosen[kind < 0.8], chosen[(kind >= 0.8) & (kind < 0.9)]
        inputs[hidden] = vocabulary.sentinel(0)
        inputs[replaced] = other[(kind >= 0.8) & (kind < 0.9)]
        weights = np.zeros(len(tokens) + 1, np.int32)
        weights[chosen] = 1
        return {
            "inputs": np.append(inputs, vocabulary.eos_id).astype(np.int32),
            "targets": np.append(tokens, vocabulary.eos_id).astype(np.int32),
            "target_weights": weights,
        }
