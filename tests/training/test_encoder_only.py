import json
import os
import pathlib
import random

import optax
import pytest

from t5lite.cli.main import main
from t5lite.core.errors import UserError
from t5lite.core.run_directory import read_metrics
from t5lite.data.batching.features import EncoderLayout
from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.inference.decoding import Decoding
from t5lite.inference.evaluate import make_evaluate
from t5lite.losses.chain import CRF
from t5lite.models.architectures import EncoderDecoder, EncoderOnly
from t5lite.models.classifier import Classes
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from t5lite.objectives.classes import Classification, Tagging
from t5lite.objectives.masked_lm import MaskedLM
from t5lite.optimizers.optimizer import make_optimizer
from tests import small
from tests.models.encoders import BERT_PARTS

WORDS = ["red", "blue", "cat", "dog", "seven", "nine"]
KINDS = {"red": "color", "blue": "color", "cat": "animal", "dog": "animal"}
NAMES = ["number", "color", "animal"]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Texts of a few words, the kind of each word, and the kind that the first word has."""
    choose, folder = random.Random(0), tmp_path_factory.mktemp("words")
    paths = {}
    for split, count in (("train", 300), ("validation", 60)):
        paths[split] = str(folder / f"{split}.jsonl")
        with open(paths[split], "w") as file:
            for _ in range(count):
                words = choose.choices(WORDS, k=choose.randint(1, 4))
                kinds = [KINDS.get(word, "number") for word in words]
                text = {"text": " ".join(words), "tags": " ".join(kinds), "kind": kinds[0]}
                file.write(json.dumps(text) + "\n")
    return paths


@pytest.fixture
def make_run(examples, data_dir, text_file):
    def make(model_dir, objective, target, classes, **changes):
        task = Task(
            source=FileSource(files=examples, data_dir=data_dir, fields=("text", "tags", "kind")),
            vocabulary=ByteVocabulary(),
            objective=objective,
            inputs="{text}" if target else None,
            targets=target or "{text}",
            metrics=changes.pop("metrics", ()),
        )
        config = small.config(
            num_decoder_layers=0, tied_logits=True, embed_dim=32, num_heads=4, head_dim=8
        )
        choices = {
            "model": EncoderOnly(config, classes),
            "task": task,
            "optimizer": make_optimizer(optax.adamw, name="AdamW", learning_rate=5e-3),
            "total_steps": 60,
            "batch_size": 16,
            "log_every_steps": 60,
            "checkpoint_every_steps": 60,
        }
        return small.run(text_file, data_dir, model_dir, **{**choices, **changes})

    return make


def accuracy(run):
    small.train(run)
    return read_metrics(pathlib.Path(run.model_dir))[-1]["accuracy_fraction"]


CLASSIFY = Classification(inputs_length=24, classes=NAMES)
TAG = Tagging(inputs_length=24, classes=NAMES)


@pytest.mark.proof
@pytest.mark.parametrize("packed", [False, True])
def test_words_are_tagged(packed, make_run, tmp_path):
    classes = Classes(count=3, per_token=True)
    run = make_run(tmp_path, TAG, "{tags}", classes, packed=packed)
    assert run.layout == EncoderLayout(24)
    # Two kinds in three would be wrong by chance.
    assert accuracy(run) > 0.95


@pytest.mark.proof
def test_a_chain_is_trained_evaluated_and_inferred(make_run, tmp_path, data_dir, monkeypatch):
    classes = Classes(count=3, per_token=True, structure="chain", names=NAMES)
    run = make_run(
        tmp_path, TAG, "{tags}", classes, packed=True, loss=CRF(), metrics=["exact_match"]
    )
    params = small.train(run).params
    scores = make_evaluate(
        *(run.model, run.task, run.layout, run.evaluation_loss, small.mesh(run)),
        split="validation",
        batch_size=16,
        decoding=Decoding(),
    )(params)
    assert scores["exact_match_fraction"] == scores["sequence_accuracy_fraction"] > 0.8
    assert scores["perplexity"] < 1.5
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"inputs": "red dog"}\n{"inputs": "nine cat cat blue"}\n')
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    monkeypatch.setattr(os, "_exit", lambda status: None)
    out = tmp_path / "out.jsonl"
    main(["infer", f"--checkpoint={tmp_path}", f"--input={asked}", f"--output={out}"])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [each["prediction"] for each in found] == ["color animal", "number animal animal color"]
    assert all(-1.0 < each["score"] < 0 for each in found)


@pytest.mark.proof
@pytest.mark.parametrize("packed", [False, True])
def test_examples_are_classified(packed, make_run, tmp_path):
    classes = Classes(count=3, per_token=False)
    run = make_run(tmp_path, CLASSIFY, "{kind}", classes, packed=packed, total_steps=240)
    assert accuracy(run) > 0.9


@pytest.mark.proof
@pytest.mark.parametrize("packed", [False, True])
def test_examples_are_classified_by_a_decoder(packed, make_run, tmp_path):
    classes = Classes(count=3, per_token=False, pooling="last", has_dense=True, names=NAMES)
    config = small.config(embed_dim=32, num_heads=4, head_dim=8, num_decoder_layers=1)
    run = make_run(
        tmp_path,
        CLASSIFY,
        "{kind}",
        None,
        model=EncoderDecoderClassifier(config, classes),
        packed=packed,
        total_steps=300,
    )
    # Two in five would be right by chance.
    assert accuracy(run) > 0.8


@pytest.mark.proof
def test_hidden_tokens_are_restored(make_run, tmp_path):
    run = make_run(tmp_path, MaskedLM(inputs_length=24), None, None, total_steps=120)
    small.train(run)
    first, *_, last = (m for m in read_metrics(tmp_path) if m["split"] == "validation")
    assert last["cross_entropy_nats_per_token"] < 0.6 * first["cross_entropy_nats_per_token"]


@pytest.mark.proof
def test_hidden_tokens_are_restored_by_a_bert(make_run, tmp_path):
    parts = {"embed_dim": 32, "num_heads": 4, "head_dim": 8, "attention_scale": 8**-0.5}
    model = EncoderOnly(small.config(**{**BERT_PARTS, **parts}))
    choices = {"model": model, "packed": True, "total_steps": 120}
    run = make_run(tmp_path, MaskedLM(inputs_length=24), None, None, **choices)
    small.train(run)
    first, *_, last = (m for m in read_metrics(tmp_path) if m["split"] == "validation")
    assert last["cross_entropy_nats_per_token"] < 0.6 * first["cross_entropy_nats_per_token"]


def test_rows_with_more_tokens_than_learned_positions_are_rejected_at_once(make_run, tmp_path):
    model = EncoderOnly(small.config(**BERT_PARTS))
    message = r"T5Config.max_positions must be at least the tokens of a row \(32\), got 24"
    with pytest.raises(UserError, match=message):
        make_run(tmp_path, MaskedLM(inputs_length=32), None, None, model=model)


@pytest.mark.parametrize(
    ("objective", "target", "model", "message"),
    [
        (TAG, "{tags}", Classes(count=3, per_token=False), "per_token=False cannot train on Tagg"),
        (CLASSIFY, "{kind}", Classes(count=3, per_token=True), "use Tagging"),
        (CLASSIFY, "{kind}", None, "EncoderOnly cannot train on Classification; use MaskedLM"),
        (TAG, "{tags}", Classes(count=4, per_token=True), r"must be the number of .* \(3\), got 4"),
        (TAG, "{tags}", "encoder_decoder", "Tagging, which is for EncoderOnly and classifiers"),
        (
            CLASSIFY,
            "{kind}",
            Classes(count=3, per_token=False, names=NAMES[::-1]),
            r"classes must be the model's Classes.names \['animal', .*, got \['number', 'color', '",
        ),
    ],
)
def test_conflicting_models_and_objectives_are_rejected(
    objective, target, model, message, make_run, tmp_path
):
    changes = {}
    if model == "encoder_decoder":
        model, changes = None, {"model": EncoderDecoder(small.config())}
    with pytest.raises(UserError, match=message):
        make_run(tmp_path, objective, target, model, **changes)
