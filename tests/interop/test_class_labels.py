"""Classes of models of Hugging Face: their number, names and purpose."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.interop.huggingface import read_huggingface, write_huggingface
from t5lite.models.classifier import Classes
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from tests.proofs import proof

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface"


def folder_with(tmp_path, case="classifier", **changes):
    shutil.copytree(GOLDEN / case, tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return tmp_path / "c"


def test_names_of_classes_are_kept_in_and_out(tmp_path):
    foreign = read_huggingface(GOLDEN / "classifier")
    assert foreign.model.classes.names == ("no", "maybe", "yes")
    write_huggingface(foreign, tmp_path, np.dtype(np.float32))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["T5ForSequenceClassification"]
    assert written["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert written["label2id"] == {"no": 0, "maybe": 1, "yes": 2}
    assert not (tmp_path / "generation_config.json").exists()
    assert "AutoModelForSequenceClassification" in (tmp_path / "README.md").read_text()


def test_class_is_known_by_its_tensors_without_a_name(tmp_path):
    folder = folder_with(tmp_path, architectures=None)
    assert read_huggingface(folder).model == read_huggingface(GOLDEN / "classifier").model


def test_usual_labels_are_no_names(tmp_path):
    labels = {str(number): f"LABEL_{number}" for number in range(3)}
    assert read_huggingface(folder_with(tmp_path, id2label=labels)).model.classes.names == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "regression"}, "problem_type must be 'single_label_.*, got 'regression'"),
        ({"problem_type": "multi_label_classification"}, "got 'multi_label_classification' with 3"),
        ({"id2label": {"0": "a"}}, "id2label must name the 3 classes of .*, got {'0': 'a'}"),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "id2label must name the 3 classes"),
        ({"id2label": {"0": "a", "1": 5, "2": "b"}}, "id2label must name the 3 classes"),
        ({"id2label": ["a", "b", "c"]}, "id2label must name the 3 classes"),
    ],
)
def test_classes_without_a_counterpart_are_rejected_by_name(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_huggingface(folder_with(tmp_path, **changes))


def test_single_class_of_a_regression_is_rejected(tmp_path):
    folder = folder_with(tmp_path, id2label=None)
    tensors = load_file(folder / "model.safetensors")
    for part in ("weight", "bias"):
        name = f"classification_head.out_proj.{part}"
        tensors[name] = np.ascontiguousarray(tensors[name][:1])
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="got None with 1; t5lite has no loss for it"):
        read_huggingface(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "mean"}, "no counterpart of Classes.pooling 'mean' with has_dense True"),
        ({"pooling": "last", "has_dense": False}, "'last' with has_dense False"),
        ({"pooling": "mean", "per_token": True}, "Classes.per_token True of an encoder-decoder"),
    ],
)
def test_classifier_that_transformers_does_not_have_is_not_written(changes, message, tmp_path):
    foreign = read_huggingface(GOLDEN / "classifier")
    classes = dataclasses.replace(foreign.model.classes, **changes)
    foreign = dataclasses.replace(foreign, model=foreign.model.clone(classes=classes))
    with pytest.raises(UserError, match=message):
        write_huggingface(foreign, tmp_path, np.dtype(np.float32))


def test_class_of_a_sequence_by_t5gemmas_decoder_comes_with_a_remark():
    foreign = read_huggingface(GOLDEN / "t5gemma_decoder_classifier")
    assert foreign.model.classes == Classes(
        count=3, per_token=False, pooling="last", names=("no", "maybe", "yes")
    )
    assert any("that transformers computes without padding" in r for r in foreign.remarks)
    tagger = read_huggingface(GOLDEN / "t5gemma_decoder_tagger")
    assert not any("padding" in remark for remark in tagger.remarks)


@pytest.mark.parametrize(
    ("end", "classes"),
    [
        ("ForSequenceClassification", Classes(count=2, per_token=False, pooling="last")),
        proof("ForTokenClassification", Classes(count=2, per_token=True)),
    ],
)
def test_classes_of_t5gemma_2_are_written_and_read_back(end, classes, tmp_path):
    foreign = read_huggingface(GOLDEN / "t5gemma2")
    config = dataclasses.replace(foreign.model.config, logits_soft_cap=None)
    arrays = {
        "classifier/kernel": np.arange(24, dtype=np.float32).reshape(12, 2),
        "classifier/bias": np.float32([3, 4]),
    }
    scores = {n: LazyArray(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}
    model = EncoderDecoderClassifier(config, classes)
    changed = dataclasses.replace(foreign, model=model, params={**foreign.params, **scores})
    remarks = write_huggingface(changed, tmp_path, np.dtype(np.float32))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == [f"T5Gemma2{end}"]
    again = read_huggingface(tmp_path)
    assert again.model == model
    for name, array in arrays.items():
        np.testing.assert_array_equal(again.params[name].load(), array)
    assert any("without padding" in remark for remark in remarks) != classes.per_token


def test_class_of_the_last_token_of_t5gemmas_encoder_has_no_dense_layer(tmp_path):
    foreign = read_huggingface(GOLDEN / "t5gemma_classifier")
    assert foreign.model.classes.pooling == "last"
    assert foreign.model.classes.names == ("no", "maybe", "yes")
    classes = dataclasses.replace(foreign.model.classes, pooling="mean")
    changed = dataclasses.replace(foreign, model=foreign.model.clone(classes=classes))
    with pytest.raises(UserError, match="T5Gemma of transformers has no counterpart of Classes"):
        write_huggingface(changed, tmp_path, np.dtype(np.float32))
