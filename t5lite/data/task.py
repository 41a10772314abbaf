"""What is learned: a source of text, a vocabulary and an objective."""

import dataclasses

from t5lite.core.examples import Objective
from t5lite.data.sources import Source
from t5lite.data.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Examples that an objective makes from the running text of a source.

    Documents are joined without a mark between them and cut to the length that the objective
    takes, as T5's pre-training does.

    Raises:
        UserError: where the vocabulary cannot serve the objective.
    """

    source: Source
    vocabulary: Vocabulary
    objective: Objective

    def __post_init__(self) -> None:
        self.objective.check(self.vocabulary)

    def identity(self, split: str) -> dict[str, str]:
        """Returns what a place in the stream of `split` depends on, to be saved with it."""
        return {
            "data": self.source.documents(split).fingerprint,
            "vocabulary": self.vocabulary.fingerprint,
            "objective": repr(self.objective),
        }
