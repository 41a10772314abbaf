"""BERT's recipe and weights of tasks in whole runs: train, evaluate, predict."""

import dataclasses
import itertools
import json
import pathlib

import optax
import pytest

from t5lite.core.errors import UserError
from t5lite.core.run_directory import read_metrics
from t5lite.data.mixture import Mixture
from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.inference.decoding import Decoding
from t5lite.inference.evaluate import make_evaluate
from t5lite.losses.answer_span import SpanCrossEntropy
from t5lite.losses.next_sentence import NextSentence
from t5lite.losses.ranking import ListwiseSoftmax
from t5lite.losses.task_weights import TaskWeights
from t5lite.models.architectures import EncoderDecoder, EncoderOnly
from t5lite.models.classifier import Classes
from t5lite.objectives.extraction import Extraction
from t5lite.objectives.ranking import Ranking
from t5lite.objectives.sentence_pairs import SentencePairs
from t5lite.objectives.span_corruption import SpanCorruption
from t5lite.optimizers.optimizer import make_optimizer
from tests import small
from tests.models.encoders import BERT_PARTS

PARTS = {**BERT_PARTS, "embed_dim": 32, "num_heads": 4, "head_dim": 8, "attention_scale": 8**-0.5}
BERT = small.config(**{**PARTS, "num_encoder_layers": 1, "max_positions": 32})
ADAM = make_optimizer(optax.adamw, name="AdamW", learning_rate=5e-3)


@pytest.fixture
def bert_run(text_file, data_dir, tmp_path):
    def make(objective, loss, *, classes=None, source=None, config=BERT, **changes):
        given = {"train": str(text_file), "validation": str(text_file)}
        fields = {"inputs": None} if source is None else {"inputs": "{q}<extra_id_0>{c}"}
        metrics = ("squad",) if source is not None else ()
        if isinstance(objective, Ranking):
            fields = {"inputs": "{q}<extra_id_0>{c:<extra_id_0>}"}
            metrics = ("mrr", "ndcg")
        task = Task(
            source=source or FileSource(files=given, data_dir=data_dir),
            vocabulary=ByteVocabulary(),
            objective=objective,
            targets="{text}" if source is None else "{a}",
            metrics=metrics,
            **fields,
        )
        choices = {"model": EncoderOnly(config, classes), "task": task, "loss": loss}
        choices |= {"optimizer": ADAM, "packed": True, "log_every_steps": 10**6}
        return small.run(text_file, data_dir, tmp_path / "run", **choices, **changes)

    return make


@pytest.mark.proof
def test_masked_tokens_and_next_sentences_are_learned_together(bert_run):
    config = dataclasses.replace(BERT, next_sentence=True)
    objective = SentencePairs(inputs_length=32, whole_words=True)
    run = bert_run(objective, NextSentence(), config=config, total_steps=20)
    assert {"encoder_token_types", "encoder_pair_labels"} <= set(run.layout.lengths)
    small.train(run)
    first, *_, last = (
        m for m in read_metrics(pathlib.Path(run.model_dir)) if m["split"] == "validation"
    )
    assert last["loss_nats_per_token"] < first["loss_nats_per_token"]
    # A loss of two classes, near that of chance so early.
    assert 0.5 < last["next_sentence_nats_per_pair"] < 1.0
    assert 0 <= last["next_sentence_accuracy_fraction"] <= 1


@pytest.mark.proof
def test_answers_are_found_in_their_context(bert_run, data_dir, tmp_path):
    words = ("red", "blue", "cat", "dog")
    lines = []
    for number in range(64):
        one, two = words[number % 4], words[number // 4 % 4]
        asked = "12"[number % 2]
        context = f"1 {one} 2 {two}"
        answer = one if asked == "1" else two
        lines.append(json.dumps({"q": asked, "c": context, "a": answer}) + "\n")
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(lines))
    files = {"train": str(path), "validation": str(path)}
    source = FileSource(files=files, data_dir=data_dir, fields=("q", "c", "a"))
    classes = Classes(count=2, per_token=True, structure="span")
    # Contexts of 12 and 13 tokens take two windows of 11.
    objective = Extraction(inputs_length=14, span_length=6, stride=5)
    run = bert_run(objective, SpanCrossEntropy(), classes=classes, source=source, total_steps=60)
    params = small.train(run).params
    scores = make_evaluate(
        *(run.model, run.task, run.layout, run.evaluation_loss, small.mesh(run)),
        split="validation",
        batch_size=32,
        decoding=Decoding(),
    )(params)
    assert scores["target_tokens"] == scores["examples"] > 64
    # By chance one in about eighty spans.
    assert scores["squad_exact_match_fraction"] > 0.8
    assert scores["squad_exact_match_fraction"] >= scores["accuracy_fraction"]


@pytest.mark.proof
def test_candidates_of_a_query_are_ranked(bert_run, data_dir, tmp_path):
    path = tmp_path / "queries.jsonl"
    with open(path, "w") as file:
        for query, other in itertools.permutations("abcde", 2):
            for candidates in ([query, other], [other, query]):
                relevance = [int(each == query) for each in candidates]
                file.write(json.dumps({"q": query, "c": candidates, "a": relevance}) + "\n")
    files = {"train": str(path), "validation": str(path)}
    source = FileSource(files=files, data_dir=data_dir, fields=("q", "c", "a"))
    classes = Classes(count=1, per_token=False, structure="ranking", pooling="first")
    objective = Ranking(pair_length=6, num_candidates=8)
    loss = ListwiseSoftmax()
    run = bert_run(objective, loss, classes=classes, source=source, total_steps=60)
    assert {"encoder_token_types", "encoder_query_ids"} <= set(run.layout.lengths)
    # Rows are longer than the learned positions, which each candidate counts by itself.
    assert run.layout.lengths["encoder_input_tokens"] > run.model.config.max_positions
    params = small.train(run).params
    scores = make_evaluate(
        *(run.model, run.task, run.layout, run.evaluation_loss, small.mesh(run)),
        split="validation",
        batch_size=32,
        decoding=Decoding(),
    )(params)
    assert scores["target_tokens"] == 40
    assert scores["mrr_fraction"] > 0.9
    # Losses read two candidates in one row, predictions each by itself: the first is the same.
    assert scores["mrr_fraction"] == pytest.approx((1 + scores["accuracy_fraction"]) / 2)
    with pytest.raises(UserError, match="cannot train on Extraction; use Ranking"):
        bert_run(Extraction(inputs_length=20), loss, classes=classes, source=source)
    with pytest.raises(UserError, match="needs Classes.structure='span', got .*'ranking'; bind tr"):
        bert_run(objective, SpanCrossEntropy(), classes=classes, source=source)


@pytest.mark.proof
def test_weights_of_tasks_are_learned_in_packed_rows(text_file, data_dir, tmp_path):
    files = {"train": str(text_file), "validation": str(text_file)}
    tasks = [
        Task(
            name=name,
            source=FileSource(files=files, data_dir=data_dir),
            vocabulary=ByteVocabulary(),
            objective=SpanCorruption(inputs_length=24),
        )
        for name in ("a", "b")
    ]
    one_layer = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    model = EncoderDecoder(small.config(num_weighted_tasks=2, **one_layer))
    choices = {"task": Mixture(components=tasks, shares=[1.0, 3.0]), "packed": True}
    choices |= {"model": model, "loss": TaskWeights(tasks=["a", "b"])}
    run = small.run(text_file, data_dir, tmp_path, **choices)
    state = small.train(run)
    logged = [m for m in read_metrics(pathlib.Path(tmp_path)) if m["split"] == "train"]
    assert all(m["a/target_tokens"] < m["b/target_tokens"] for m in logged)
    for metrics in logged:
        total = metrics["a/target_tokens"] + metrics["b/target_tokens"]
        assert total == metrics["target_tokens"]
        name = "cross_entropy_nats_per_token"
        nats = sum(metrics[f"{n}/{name}"] * metrics[f"{n}/target_tokens"] for n in "ab")
        assert nats / total == pytest.approx(metrics[name], rel=1e-4)
    # More than a nat a token: both variances grow.
    assert (state.params["task_weights"]["log_variances"] > 0).all()
    assert logged[-1]["a/weight"] < 1
    other = dataclasses.replace(run, loss=TaskWeights(tasks=["b", "a"]))
    with pytest.raises(UserError, match=r"TaskWeights.tasks must name the tasks .* got \['b', 'a'"):
        small.train(other)
