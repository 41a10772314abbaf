"""BERT's pre-training: masked tokens, and whether the second of two parts follows the first."""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Denoiser, Example, Sentinels, Tokens
from t5lite.core.fields import field_error, field_name
from t5lite.objectives.lengths import check_length
from t5lite.objectives.masked_lm import MaskedLM

# Of an example whose second part follows the first, and of one whose second part does not.
NEXT_PART = 1
OTHER_PART = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePairs:
    """Two parts of a text with masked tokens; in half of the examples the second follows the first.

    An example reads twice the text that it holds. The first part has a random length; the second
    part is what follows it, or, equally often, a stretch of the same length from the second half.
    With `Task.join_documents` that is often another document. Tokens are masked as in `MaskedLM`,
    and the parts differ in their token types. A text too short for two parts has no label.

    Args:
        inputs_length: of the longest example, in tokens including the first token that the
            vocabulary may have, the separator and the end of sequence.
        separator: one token between the parts, such as '[SEP]' of BERT.
        noise_density, whole_words: see `MaskedLM`.

    Raises:
        UserError: if a number is out of range.

    Source: Devlin et al., BERT, section 3.1.
    Differs: the parts are stretches of tokens, not of sentences; the other text is a later one of
    the same shuffled stream, not one that is drawn from all documents; examples are not shortened
    at random.
    """

    # The types of tokens distinguish the parts.
    has_types: ClassVar[bool] = True

    inputs_length: int
    separator: str = "<extra_id_1>"
    noise_density: float = 0.15
    whole_words: bool = False
    lookahead: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise field_error(self, "noise_density", "in (0, 1)")
        check_length(self, "inputs_length", 5)

    @property
    def targets_length(self) -> int:
        """The same as the inputs: a target for each position."""
        return self.inputs_length

    @property
    def total_length(self) -> int:
        """Tokens of the inputs; targets take no further positions."""
        return self.inputs_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError if the vocabulary has no mask, no separator, or cannot find words."""
        self._masked_lm.check(vocabulary)
        ids = vocabulary.encode(self.separator)
        if len(ids) != 1 or ids[0] == vocabulary.mask_id:
            raise UserError(
                f"{field_name(self, 'separator')} must be one token of the vocabulary, not its "
                f"mask, got {self.separator!r} of {len(ids)} tokens; use a sentinel or an added "
                "token"
            )

    @property
    def _masked_lm(self) -> MaskedLM:
        return MaskedLM(
            inputs_length=self.inputs_length,
            noise_density=self.noise_density,
            whole_words=self.whole_words,
        )

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> Denoiser:
        return _denoiser(self, self._masked_lm, vocabulary)


@functools.lru_cache(maxsize=64)
def _denoiser(
    objective: SentencePairs, masked_lm: MaskedLM, vocabulary: Sentinels
) -> "_PairDenoiser":
    (separator,) = vocabulary.encode(objective.separator)
    frame = len(vocabulary.first_input_ids) + len(vocabulary.last_input_ids) + 1
    return _PairDenoiser(masked_lm, int(separator), objective.inputs_length - frame)


@dataclasses.dataclass(frozen=True)
class _PairDenoiser:
    """Makes the example of a stretch of text.

    Args:
        text_length: tokens of both parts.
    """

    masked_lm: MaskedLM
    separator: int
    text_length: int
    lookahead: int = 0

    @property
    def tokens_length(self) -> int:
        return 2 * self.text_length

    def __call__(self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels) -> Example:
        length = min(self.text_length, max(1, len(tokens) // 2))
        cut = length
        label = 0
        second = tokens[:0]
        if length > 1:
            cut = int(rng.integers(1, length))
            label = NEXT_PART if rng.random() < 0.5 else OTHER_PART
            start = cut if label == NEXT_PART else length + cut
            second = tokens[start : start + length - cut]
        text = np.concatenate([tokens[:cut], second])
        inputs, weights = self.masked_lm.masked(text, rng, vocabulary)
        first = np.array(vocabulary.first_input_ids, np.int32)
        last = np.array(vocabulary.last_input_ids, np.int32)
        separator = np.array([self.separator], np.int32)

        def framed(part: Tokens) -> Tokens:
            return np.concatenate([first, part[:cut], separator, part[cut:], last])

        is_text = framed(np.ones_like(weights))
        # Special tokens have no weight, whatever their ids.
        is_text[: len(first)] = 0
        is_text[len(first) + cut] = 0
        is_text[len(is_text) - len(last) :] = 0
        made = framed(inputs).astype(np.int32)
        labels = np.zeros_like(made)
        labels[0] = label
        return {
            "inputs": made,
            "targets": framed(text).astype(np.int32),
            "target_weights": (framed(weights) * is_text).astype(np.int32),
            "token_types": (np.arange(len(made)) > len(first) + cut).astype(np.int32),
            "pair_labels": labels,
        }
