"""A corpus in every Python installation: the language reference, as a TFDS data set."""

import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics


def _in_validation(topic: str) -> bool:
    """Selects a tenth of the topics by name, the same ones in every version of Python."""
    return hashlib.sha256(topic.encode()).digest()[-1] % 10 == 0


def _config_name() -> str:
    """Returns a name with a digest of the text, which differs between versions of Python."""
    digest = hashlib.sha256(repr(sorted(_topics().items())).encode()).hexdigest()
    return f"python{sys.version_info.major}.{sys.version_info.minor}-{digest[:8]}"


class PythonDocs(tfds.core.GeneratorBasedBuilder):
    """Python's language reference (`pydoc_data.topics`), one example per topic, split by topic."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=_config_name())]

    def _info(self) -> Any:
        features = {"topic": tfds.features.Text(), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="The language reference that Python's help() shows.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # Nothing is downloaded.
        return {
            "train": self._generate_examples(validation=False),
            "validation": self._generate_examples(validation=True),
        }

    def _generate_examples(self, validation: bool) -> Iterator[tuple[str, dict[str, str]]]:
        for topic, text in sorted(_topics().items()):
            if _in_validation(topic) == validation:
                yield topic, {"topic": topic, "text": text}
