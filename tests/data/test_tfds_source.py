import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.sources.tfds_source import TfdsSource
from t5lite.data.text.templates import fill
from tests import small

PREPARE = """
import sys
from t5lite.data.sources.tfds_source import TfdsSource
print(TfdsSource(name="python_docs", data_dir=sys.argv[1]).records("train").fingerprint)
"""


def _all(records):
    return [records[i] for i in range(len(records))]


def test_python_docs_is_split_by_topic(data_dir):
    source = TfdsSource(name="python_docs", data_dir=data_dir)
    train, validation = (
        [r["text"] for r in _all(source.records(s))] for s in ("train", "validation")
    )
    assert len(train) + len(validation) > 70
    assert not set(train) & set(validation)
    share = sum(map(len, validation)) / sum(map(len, train + validation))
    assert 0.02 < share < 0.2
    assert source.records("train").fields == ("text", "topic")


@pytest.mark.parametrize("name", ["glue", "c4", "wmt16_translate", "cnn_dailymail", "lm1b"])
def test_the_text_data_sets_of_the_catalogue_are_known(name, data_dir):
    with pytest.raises(UserError, match=f"{name}/no_such.*BuilderConfig no_such not found"):
        TfdsSource(name=f"{name}/no_such", data_dir=data_dir).records("train")


def test_an_unknown_version_is_rejected(data_dir):
    with pytest.raises(UserError, match="'lm1b:9.9.9' cannot be loaded: .*9.9.9, only: 1.1.0"):
        TfdsSource(name="lm1b:9.9.9", data_dir=data_dir).records("train")


def test_a_data_set_that_needs_another_package_names_it(monkeypatch, data_dir):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match="'super_glue/boolq' needs the package 'tensorflow'"):
        TfdsSource(name="super_glue/boolq", data_dir=data_dir).records("train")


@pytest.fixture(scope="module")
def labelled():
    """The name of a TFDS data set with class labels, which are missing in its test split."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.util import DownloadError

    class LabelledTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["no", "yes"])
            answer = {"text": tfds.features.Text(), "answer_start": np.int32}
            features = {
                "text": tfds.features.Text(),
                "label": label,
                "idx": np.int32,
                "answers": tfds.features.Sequence(answer),
                "tags": tfds.features.Sequence(label),
                "translation": tfds.features.Translation(languages=["de", "en"]),
                "pixels": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            if "no_network" in str(self.data_dir):
                raise DownloadError("no network\nat all")
            return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

        def _generate_examples(self, is_test):
            for n in range(4):
                yield (
                    n,
                    {
                        "text": f"text {n}",
                        "label": -1 if is_test else n % 2,
                        "idx": n,
                        "answers": [{"text": "größer", "answer_start": n}] * n,
                        "tags": [n % 2, 0],
                        "translation": {"de": "Hund", "en": "dog"},
                        "pixels": [0.5, 0.5],
                    },
                )

    return LabelledTexts.name


def test_class_labels_are_names(labelled, tmp_path):
    source = TfdsSource(name=labelled, data_dir=str(tmp_path))
    train, test = (_all(source.records(split)) for split in ("train", "test"))
    assert {(r["idx"], r["label"]) for r in train} == {
        ("0", "no"), ("1", "yes"), ("2", "no"), ("3", "yes"),
    }  # fmt: skip
    assert {r["label"] for r in test} == {"<unk>"}
    # Processes that build a token cache receive pickled records.
    assert _all(pickle.loads(pickle.dumps(source.records("train")))) == train


def test_lists_and_objects_of_a_data_set_are_fields(labelled, tmp_path):
    records = TfdsSource(name=labelled, data_dir=str(tmp_path)).records("train")
    assert records.fields == ("answers", "idx", "label", "tags", "text", "translation")
    (record,) = [record for record in _all(records) if record["idx"] == "2"]
    assert record["answers"].value == {"text": ["größer"] * 2, "answer_start": [2, 2]}
    assert record["tags"].value == ["no", "no"]
    assert fill("{translation.de} {answers.text.1}", record) == "Hund größer"


def test_a_failed_download_is_reported_on_one_line(labelled, tmp_path):
    with pytest.raises(UserError, match=f"'{labelled}' cannot be prepared: no network$"):
        TfdsSource(name=labelled, data_dir=str(tmp_path / "no_network")).records("train")


def test_an_unknown_split_is_rejected_with_the_known_ones(data_dir):
    with pytest.raises(UserError, match="has no split 'test'; known: train, validation"):
        TfdsSource(name="python_docs", data_dir=data_dir).records("test")


@pytest.mark.proof
def test_processes_that_prepare_a_data_set_get_the_same_fingerprint(tmp_path):
    # TFDS orders the fields by their hashes.
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, str(tmp_path / str(seed))],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    assert len({process.communicate(timeout=small.PATIENCE)[0] for process in processes}) == 1


def test_a_data_set_may_be_prepared_elsewhere_once_its_builder_was_created(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    create = tfds.builder

    def created_then_prepared(name, **options):
        builder = create(name, **options)
        monkeypatch.setattr(tfds, "builder", create)
        TfdsSource(name="python_docs", data_dir=str(tmp_path)).records("train")
        return builder

    monkeypatch.setattr(tfds, "builder", created_then_prepared)
    assert len(TfdsSource(name="python_docs", data_dir=str(tmp_path)).records("train")) > 50


@pytest.mark.proof
def test_processes_may_prepare_a_data_set_at_the_same_time(tmp_path):
    command = [sys.executable, "-c", PREPARE, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate(timeout=small.PATIENCE)[0] for process in processes}
    assert len(outputs) == 1
    assert int(outputs.pop().split()[0]) > 50
