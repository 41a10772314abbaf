"""UL2's mixture of denoisers: short spans, long or many spans, and the end of the text."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Denoiser, Example, Sentinels, Tokens
from t5lite.objectives.prefix_lm import PrefixLM
from t5lite.objectives.span_corruption import SpanCorruption

# Mode, mean length of spans in tokens, share of the text; the S-denoiser has one span, at the end.
# Source: Tay et al., UL2: Unifying Language Learning Paradigms, table 1.
DENOISERS: tuple[tuple[str, float | None, float], ...] = (
    ("R", 3.0, 0.15),
    ("R", 8.0, 0.15),
    ("X", 3.0, 0.5),
    ("X", 8.0, 0.5),
    ("X", 64.0, 0.15),
    ("X", 64.0, 0.5),
    ("S", None, 0.25),
)

MODE_TOKENS = {"R": "[NLU]", "X": "[NLG]", "S": "[S2S]"}


@dataclasses.dataclass(frozen=True)
class _InMode:
    """A denoiser whose inputs begin with the tokens of its mode."""

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
        return {**example, "inputs": np.concatenate([self.prefix, example["inputs"]])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UL2:
    """Each example comes from one of UL2's seven denoisers, and its inputs say from which kind.

    Args:
        inputs_length: of the longest input, in tokens, mode and end of sequence included.
        targets_length: of the longest target.
        rates: how often each of `DENOISERS` is taken, relative to the others.
        mode_tokens: the text that opens the inputs of R, X and S; a vocabulary with these as
            symbols of their own spends one token on them.

    Raises:
        UserError: for rates or lengths that leave a denoiser impossible.

    Source: Tay et al., UL2, section 3.1. Without the paper's numbers the rates are equal.
    """

    inputs_length: int
    targets_length: int
    rates: Sequence[float] = (1.0,) * len(DENOISERS)
    mode_tokens: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(MODE_TOKENS))

    def __post_init__(self) -> None:
        rates = self.rates
        if len(rates) != len(DENOISERS) or min(rates) < 0 or sum(rates) <= 0:
            raise UserError(
                f"UL2.rates must be {len(DENOISERS)} numbers of at least 0, one of them over 0, "
                f"got {list(rates)}"
            )
        if self.mode_tokens.keys() != MODE_TOKENS.keys():
            raise UserError(
                f"UL2.mode_tokens must name {sorted(MODE_TOKENS)}, got {sorted(self.mode_tokens)}"
            )

    @property
    def total_length(self) -> int:
        """Of inputs and targets together, in tokens."""
        return self.inputs_length + self.targets_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError where a denoiser cannot be had with this vocabulary."""
        for made, rate in zip(self._denoisers(vocabulary), self.rates, strict=True):
            if rate and isinstance(made.denoiser, SpanCorruption):
                made.denoiser.check(vocabulary)
                if made.denoiser.targets_length > self.targets_length:
                    raise UserError(
                        f"UL2.targets_length must be at least {made.denoiser.targets_length} "
                        f"tokens for inputs of {self.inputs_length}, got {self.targets_length}"
                    )

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> Denoiser:
        """Returns the denoiser of one example."""
        denoisers, bounds = self._denoisers(vocabulary), self._bounds
        return denoisers[int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))]

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        return np.cumsum(np.asarray(self.rates, float))

    def _denoisers(self, vocabulary: Sentinels) -> list[_InMode]:
        # Made once for the vocabulary of the run, not once for an example.
        made: tuple[Sentinels, list[_InMode]] | None = self.__dict__.get("_made")
        if made is None or made[0] is not vocabulary:
            denoisers = [self._denoiser(*row, vocabulary) for row in DENOISERS]
            self.__dict__["_made"] = made = (vocabulary, denoisers)
        return made[1]

    def _denoiser(
        self, mode: str, span: float | None, density: float, vocabulary: Sentinels
    ) -> _InMode:
        prefix = vocabulary.encode(self.mode_tokens[mode])
        length = self.inputs_length - len(prefix)
        if span is None:
            denoiser: Denoiser = PrefixLM(
                inputs_length=length, targets_length=self.targets_length, suffix_fraction=density
            )
        else:
            denoiser = SpanCorruption(
                inputs_length=length, noise_density=density, mean_noise_span_length=span
            )
        return _InMode(prefix, denoiser)
