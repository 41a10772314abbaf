import importlib.util
import pydoc_data.topics

import pytest

# Doctests are looked for in every module, and this one cannot be imported without them.
has_torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
collect_ignore = [] if has_torch else ["transformers_models.py"]


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small SentencePiece model with T5's special ids."""
    import sentencepiece

    path = tmp_path_factory.mktemp("vocabulary") / "spiece"
    text = pydoc_data.topics.topics.values()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for topic in text for line in topic.splitlines()),
        model_prefix=str(path),
        vocab_size=500,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return f"{path}.model"
