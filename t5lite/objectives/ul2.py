"""UL2's mixture of denoisers: short spans, long or dense spans, and the end of the text."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from t5lite.core.examples import Denoiser, Sentinels
from t5lite.core.fields import field_error
from t5lite.objectives.lengths import check_length
from t5lite.objectives.prefix_lm import PrefixLM
from t5lite.objectives.prefixed import Prefixed
from t5lite.objectives.span_corruption import MIN_INPUTS_LENGTH, SpanCorruption

# Mode, mean span length in tokens, noise density; the S-denoiser has one span, at the end.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class UL2:
    """Each example comes from one of UL2's seven denoisers; its inputs begin with a mode token.

    Args:
        inputs_length: of the longest input, in tokens including the first token that the vocabulary
            may have, the mode and the end of sequence.
        targets_length: of the longest target, in tokens.
        rates: how often to draw each of `DENOISERS`, relative to the others.
        mode_tokens: the text before the inputs of R, X and S; one token each if the vocabulary has
            these symbols (`vocab.user_symbols`).

    Raises:
        UserError: if the rates or lengths rule out a denoiser.

    Source: Tay et al., UL2, section 3.1. The paper gives no rates; the default is equal rates.
    """

    inputs_length: int
    targets_length: int
    rates: Sequence[float] = (1.0,) * len(DENOISERS)
    mode_tokens: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(MODE_TOKENS))

    def __post_init__(self) -> None:
        check_length(self, "inputs_length", 1)
        check_length(self, "targets_length", 2)
        rates = self.rates
        if len(rates) != len(DENOISERS) or min(rates) < 0 or sum(rates) <= 0:
            raise field_error(
                self,
                "rates",
                f"{len(DENOISERS)} numbers of at least 0, and one of them over 0",
            )
        if self.mode_tokens.keys() != MODE_TOKENS.keys():
            raise field_error(self, "mode_tokens", f"a text for each of {sorted(MODE_TOKENS)}")

    @property
    def total_length(self) -> int:
        """Tokens of inputs and targets together."""
        return self.inputs_length + self.targets_length

    def check(self, vocabulary: Sentinels) -> None:
        """Raises a UserError if a denoiser does not work with this vocabulary or these lengths."""
        for made, rate in zip(self._denoisers(vocabulary), self.rates, strict=True):
            if rate and isinstance(made.denoiser, SpanCorruption):
                made.denoiser.check_sentinels(vocabulary)
                if made.denoiser.targets_length > self.targets_length:
                    least = made.denoiser.targets_length
                    raise field_error(
                        self,
                        "targets_length",
                        f"at least {least} tokens for inputs of {self.inputs_length}",
                    )

    def choose(self, rng: np.random.Generator, vocabulary: Sentinels) -> Denoiser:
        """Returns the denoiser of one example."""
        denoisers = self._denoisers(vocabulary)
        bounds = self._bounds
        return denoisers[int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))]

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        return np.cumsum(np.asarray(self.rates, float))

    def _denoisers(self, vocabulary: Sentinels) -> list[Prefixed]:
        # Built once per vocabulary, not once per example.
        made: tuple[Sentinels, list[Prefixed]] | None = self.__dict__.get("_made")
        if made is None or made[0] is not vocabulary:
            denoisers = [self._denoiser(*row, vocabulary) for row in DENOISERS]
            self.__dict__["_made"] = made = (vocabulary, denoisers)
        return made[1]

    def _denoiser(
        self, mode: str, span: float | None, density: float, vocabulary: Sentinels
    ) -> Prefixed:
        mode_ids = vocabulary.encode(self.mode_tokens[mode])
        prefix = np.concatenate([vocabulary.first_input_ids, mode_ids]).astype(np.int32)
        length = self.inputs_length - len(prefix)
        if length < MIN_INPUTS_LENGTH:
            least = MIN_INPUTS_LENGTH + len(prefix)
            rule = f"at least {least} tokens, {len(prefix)} of them for {self.mode_tokens[mode]!r}"
            raise field_error(self, "inputs_length", rule)
        if span is None:
            denoiser: Denoiser = PrefixLM(
                inputs_length=length, targets_length=self.targets_length, suffix_fraction=density
            )
        else:
            denoiser = SpanCorruption(
                inputs_length=length, noise_density=density, mean_noise_span_length=span
            )
        return Prefixed(prefix, denoiser)
