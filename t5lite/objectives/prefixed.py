"""Tokens around the inputs: the first and last ones by the vocabulary, and the modes of UL2."""

import dataclasses
import functools
from typing import Any

import numpy as np

from t5lite.core.examples import Denoiser, Example, Sentinels, Tokens


@dataclasses.dataclass(frozen=True)
class Prefixed:
    """A denoiser with tokens before its inputs. They are no targets."""

    prefix: Tokens
    denoiser: Denoiser

    @property
    def tokens_length(self) -> int:
        return self.denoiser.tokens_length

    @property
    def lookahead(self) -> int:
        return self.denoiser.lookahead

    def __call__(self, tokens: Tokens, rng: np.random.Generator, vocabulary: Sentinels) -> Example:
        example = self.denoiser(tokens, rng, vocabulary)
        prefixed = {"inputs": np.concatenate([self.prefix, example["inputs"]])}
        if "target_weights" in example:
            # There is a target for each position of the inputs.
            uncounted = np.zeros(len(self.prefix), np.int32)
            prefixed["targets"] = np.concatenate([self.prefix, example["targets"]])
            prefixed["target_weights"] = np.concatenate([uncounted, example["target_weights"]])
        return {**example, **prefixed}


def with_first_ids(objective: Any, vocabulary: Sentinels) -> Any:
    """Returns the denoiser of an objective, with the first ids of the vocabulary's inputs.

    They count in `inputs_length`.

    Raises:
        UserError: if that leaves too few tokens for the objective.
    """
    first = vocabulary.first_input_ids
    return _prefixed(objective, first) if first else objective


@functools.lru_cache(maxsize=64)
def _prefixed(objective: Any, first: tuple[int, ...]) -> Prefixed:
    length = objective.inputs_length - len(first)
    shorter = dataclasses.replace(objective, inputs_length=length)
    return Prefixed(np.array(first, np.int32), shorter)


def framed(inputs: Tokens, length: int, vocabulary: Sentinels) -> Tokens:
    """Returns inputs with the vocabulary's first and last ids, cut to `length` tokens in all.

    >>> from t5lite.data.text.special_tokens import SpecialTokens
    >>> from t5lite.data.text.vocabularies import ByteVocabulary
    >>> framed(np.array([7, 8, 9]), 4, ByteVocabulary(special=SpecialTokens(bos_id=2))).tolist()
    [2, 7, 8, 1]
    """
    first = vocabulary.first_input_ids
    last = vocabulary.last_input_ids
    kept = inputs[: max(0, length - len(first) - len(last))]
    return np.concatenate([first, kept, last]).astype(np.int32)


def exceeds(inputs: Tokens, length: int, vocabulary: Sentinels) -> bool:
    """Whether `framed` cuts the inputs."""
    return len(vocabulary.first_input_ids) + len(inputs) + len(vocabulary.last_input_ids) > length
