"""A vocabulary without pieces, for commands that need a model but encode no text."""

import dataclasses

import numpy as np
from jaxtyping import Int

from t5lite.core.errors import UserError
from t5lite.core.fields import field_name
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabulary import NUM_SPECIAL, Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandInVocabulary(Vocabulary):
    """Replaces a vocabulary whose file is missing.

    Its size is that of the special ids and the sentinels, so `T5Config.vocab_size`, which sets the
    sizes of parameters, is not compared with the number of pieces.
    """

    path: str
    num_sentinels: int = 100
    sentinels_in_model: bool = False
    first_sentinel: int | None = None
    special: SpecialTokens = SpecialTokens()
    parse_sentinels: bool = True

    @property
    def is_stand_in(self) -> bool:
        return True

    @property
    def sentinel_stop(self) -> int:
        return NUM_SPECIAL + self.num_sentinels

    @property
    def _missing(self) -> UserError:
        name = field_name(self, "path")
        return UserError(f"{name} {self.path!r} not found; this command needs the vocabulary")

    def encode_plain(self, text: str | bytes) -> Int[np.ndarray, "length"]:
        """Raises a UserError: there are no pieces."""
        raise self._missing

    def decode_pieces(self, ids: Int[np.ndarray, "length"]) -> str:
        """Raises a UserError: there are no pieces."""
        raise self._missing

    def word_starts(self, ids: Int[np.ndarray, "length"]) -> Int[np.ndarray, "words"]:
        """Raises a UserError: there are no pieces."""
        raise self._missing
