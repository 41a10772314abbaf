"""Text that a vocabulary does not know: shown, counted and reported."""

import numpy as np
import pytest
import sentencepiece

from t5lite.data.batching.features import EncoderDecoderLayout
from t5lite.data.batching.stream import Batches
from t5lite.data.sources.file_source import FileSource
from t5lite.data.statistics import task_statistics
from t5lite.data.task import Task
from t5lite.data.text.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.data.unknown_pieces import unknown_fraction
from t5lite.objectives.supervised import Supervised


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory, text_file):
    """Two models of English words, without and with byte fallback."""
    folder = tmp_path_factory.mktemp("unknown")
    made = []
    for name, byte_fallback in (("plain", False), ("bytes", True)):
        sentencepiece.SentencePieceTrainer.train(
            input=str(text_file),
            model_prefix=str(folder / name),
            vocab_size=310 if byte_fallback else 50,
            hard_vocab_limit=False,
            byte_fallback=byte_fallback,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
        made.append(SentencePieceVocabulary(path=str(folder / f"{name}.model")))
    return made


def task_of(tmp_path, vocabulary, targets, name):
    (tmp_path / f"{name}.tsv").write_text("".join(f"the fox\t{text}\n" for text in targets))
    return Task(
        name=name,
        source=FileSource(
            files={"train": str(tmp_path / f"{name}.tsv")},
            fields=("a", "b"),
            data_dir=str(tmp_path / "tfds"),
        ),
        vocabulary=vocabulary,
        objective=Supervised(inputs_length=16, targets_length=16),
        inputs="{a}",
        targets="{b}",
    )


def test_unknown_pieces_are_shown_on_request(vocabularies):
    plain, _ = vocabularies
    ids = plain.encode("the {fox}")
    assert plain.decode(ids) == "the fox"
    assert plain.decode(ids, unknown="<unk>") == "the <unk>fox<unk>"
    assert plain.decode(plain.encode("{123}"), unknown="<unk>").strip() == "<unk>"
    assert plain.decode(np.append(ids, plain.sentinel(0)), unknown="?") == "the ?fox?<extra_id_0>"


def test_their_fraction_is_counted(vocabularies, tmp_path):
    plain, with_bytes = vocabularies
    task = task_of(tmp_path, plain, ["the {fox}", "fox"], "counted")
    targets = [plain.encode("the {fox}"), plain.encode("fox")]
    found = task_statistics(task, "train", max_records=10)
    assert found.lengths["inputs"].unknown_fraction == 0
    assert found.lengths["targets"].unknown_fraction == 2 / sum(map(len, targets))
    for vocabulary in (with_bytes, ByteVocabulary()):
        assert not vocabulary.has_unknown_pieces
        assert unknown_fraction(task_of(tmp_path, vocabulary, ["{é}"], "none"), "train") == 0


@pytest.mark.parametrize(
    ("targets", "level"), [(["the {fox}"], "WARNING"), (["the fox " * 9] * 99 + ["{"], "INFO")]
)
def test_training_reports_unknown_pieces(targets, level, vocabularies, tmp_path, caplog):
    task = task_of(tmp_path, vocabularies[0], targets, f"reported{level}")
    with caplog.at_level("INFO", logger="t5lite.data.unknown_pieces"):
        Batches(task, "train", EncoderDecoderLayout(16, 16), rows=[0], batch_size=1, seed=0).close()
    (record,) = [each for each in caplog.records if "tokens of split 'train'" in each.getMessage()]
    assert record.levelname == level
    assert f"task 'reported{level}': " in record.getMessage()
