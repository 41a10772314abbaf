"""Masked language modelling: an encoder restores the tokens that a mask hides."""

import dataclasses

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Denoiser, Example, Sentinels, Tokens
from t5lite.core.fields import field_error
from t5lite.objectives.lengths import check_length
from t5lite.objectives.prefixed import with_first_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Random tokens are masked; the targets are the whole text, position by position.

    Of the chosen tokens, 80 % become the vocabulary's mask (`SpecialTokens.mask_id`, or the first
    sentinel), 10 % become a random text token, and 10 % stay as they are. The loss counts all
    chosen tokens and no others.

    Args:
        inputs_length: of the longest example, in tokens including the first token that the
            vocabulary may have and the end of sequence.
        noise_density: fraction of tokens that is chosen, in (0, 1); at least one token is.
        whole_words: whether the tokens of a word are chosen together. Words in random order are
            chosen if they do not exceed the number of tokens; one that alone does is the only one.

    Raises:
        UserError: if a number is out of range.

    Source: Devlin et al., BERT, section 3.1; for whole words
    google-research/bert@master:create_pretraining_data.py, create_masked_lm_predictions.
    Differs: the number of chosen tokens is exact, not binomial.
    """

    inputs_length: int
    noise_density: float = 0.15
    whole_words: bool = False
    lookahead: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise field_error(self, "noise_density", "in (0, 1)")
        check_length(self, "inputs_length", 2)

    def __repr__(self) -> str:
        """Names `whole_words` only if it is on: a run of before resumes by this text."""
        words = ", whole_words=True" if self.whole_words else ""
        return (
            f"MaskedLM(inputs_length={self.inputs_length!r}, "
            f"noise_density={self.noise_density!r}{words}, lookahead={self.lookahead!r})"
        )

    @property
    def tokens_length(self) -> int:
        """The inputs without the end of sequence."""
        return self.inputs_length - 1

    @property
    def targets_length(self) -> int:
        """The same as the inputs: a target for each position."""
        return self.inputs_length

    @property
    def total_length(self) -> int:
        """Tokens of the inputs; targets take no further positions."""
        return self.inputs_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError if the vocabulary has nothing to mask tokens with."""
        if vocabulary.mask_id is None:
            raise UserError(
                "MaskedLM needs a vocabulary with num_sentinels of at least 1 or with "
                "SpecialTokens.mask_id, got neither"
            )
        if self.whole_words:
            # Raises a UserError if the vocabulary cannot find words.
            vocabulary.word_numbers(np.zeros(0, np.int32))
        with_first_ids(self, vocabulary)

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> Denoiser:
        denoiser: Denoiser = with_first_ids(self, vocabulary)
        return denoiser

    def __call__(self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels) -> Example:
        inputs, weights = self.masked(tokens, rng, vocabulary)
        last = np.array(vocabulary.last_input_ids, np.int32)
        return {
            "inputs": np.append(inputs, last).astype(np.int32),
            "targets": np.append(tokens, last).astype(np.int32),
            "target_weights": np.append(weights, np.zeros_like(last)),
        }

    def masked(
        self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels
    ) -> tuple[Tokens, Tokens]:
        """Returns the tokens with some of them masked, and weights of 1 for the chosen ones."""
        num_chosen = max(1, round(len(tokens) * self.noise_density))
        if self.whole_words:
            chosen = _chosen_words(vocabulary.word_numbers(tokens), num_chosen, rng)
            num_chosen = len(chosen)
        else:
            chosen = rng.permutation(len(tokens))[:num_chosen]
        draw = rng.random(num_chosen)
        other = rng.integers(vocabulary.text_ids.start, vocabulary.text_ids.stop, num_chosen)
        is_masked = draw < 0.8
        is_replaced = (draw >= 0.8) & (draw < 0.9)
        inputs = tokens.copy()
        inputs[chosen[is_masked]] = vocabulary.mask_id
        inputs[chosen[is_replaced]] = other[is_replaced]
        weights = np.zeros(len(tokens), np.int32)
        weights[chosen] = 1
        return inputs, weights


def _chosen_words(numbers: Tokens, count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the positions of words in random order, at most `count` unless one word has more.

    Args:
        numbers: of the word of each token.
    """
    numbers = numbers - numbers[0]
    sizes = np.bincount(numbers)
    order = rng.permutation(np.flatnonzero(sizes)).tolist()
    chosen: list[int] = []
    room = count
    for word in order:
        if sizes[word] <= room:
            chosen.append(word)
            room -= sizes[word]
        if not room:
            break
    return np.flatnonzero(np.isin(numbers, chosen or order[:1]))
