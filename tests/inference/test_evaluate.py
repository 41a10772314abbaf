import json
import math

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.batching.features import DecoderLayout, EncoderDecoderLayout
from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from t5lite.inference.decoding import Decoding
from t5lite.inference.evaluate import make_evaluate
from t5lite.inference.predict import Prompt, make_predict
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.objectives.supervised import Supervised
from t5lite.parallel.mesh import Mesh
from tests import small


def test_only_counted_tokens_are_scored(text_file, data_dir):
    task = small.task(text_file, data_dir)
    model = EncoderDecoder(small.config())

    def score(counted):
        evaluate = make_evaluate(
            model,
            task,
            small.layout(),
            CrossEntropy(),
            Mesh(data=8).make(),
            split="validation",
            batch_size=8,
            counted=counted,
        )
        return evaluate(small.params(model))

    everything, text, rest = (
        score(counted)
        for counted in (None, task.vocabulary.is_text, lambda t: ~task.vocabulary.is_text(t))
    )
    assert 0 < text["target_tokens"] < everything["target_tokens"]
    assert text["target_tokens"] + rest["target_tokens"] == everything["target_tokens"]
    total = sum(s["target_tokens"] * s["cross_entropy_nats_per_token"] for s in (text, rest))
    assert total / everything["target_tokens"] == pytest.approx(
        everything["cross_entropy_nats_per_token"], rel=1e-5
    )


@pytest.mark.parametrize("causal", [False, True], ids=["span_corruption", "causal"])
def test_scores_do_not_depend_on_batch_or_mesh(causal, text_file, data_dir):
    task = small.task(text_file, data_dir, causal=causal)
    model = DecoderOnly(small.decoder_config()) if causal else EncoderDecoder(small.config())
    params = small.params(model)
    results = []
    for batch_size, mesh in [(8, Mesh()), (24, Mesh(fsdp=2, tensor=2)), (40, Mesh(data=4, fsdp=2))]:
        evaluate = make_evaluate(
            model,
            task,
            small.layout(causal=causal),
            CrossEntropy(),
            mesh.make(),
            split="validation",
            batch_size=batch_size,
        )
        results.append(evaluate(params))
    for other in results[1:]:
        assert other["target_tokens"] == results[0]["target_tokens"]
        assert other["examples"] == results[0]["examples"]
        # The same float32 sums, grouped otherwise.
        assert other["loss_nats_per_token"] == pytest.approx(
            results[0]["loss_nats_per_token"], rel=1e-5
        )


SEEN = []


def remember(answers, predictions):
    """A metric of one's own."""
    SEEN.append((list(answers), list(predictions)))
    return {
        "same_fraction": sum(p in a for a, p in zip(answers, predictions, strict=True))
        / len(answers)
    }


def test_metrics_see_every_target_and_its_prediction_once(text_file, data_dir):
    source = small.task(text_file, data_dir).source
    task = Task(
        source=source,
        vocabulary=small.ByteVocabulary(),
        objective=Supervised(inputs_length=64, targets_length=12),
        inputs="copy: {text}",
        targets="{text}",
        metrics=["tests.inference.test_evaluate:remember", "word_f1"],
        postprocessors=["lowercase"],
        preprocessors=["tests.inference.test_evaluate:shout"],
    )
    model = EncoderDecoder(small.config())
    params = small.params(model)
    for mesh, batch_size in ((Mesh(data=8), 8), (Mesh(sequence=2, tensor=2), 28)):
        evaluate = make_evaluate(
            *(model, task, EncoderDecoderLayout(64, 12), CrossEntropy(), mesh.make()),
            split="validation",
            batch_size=batch_size,
            decoding=Decoding(),
        )
        scores = evaluate(params)
        assert {"same_fraction", "word_f1_fraction", "perplexity"} < scores.keys()
    records = source.records("validation")
    wanted = [[records[n]["text"]] for n in range(len(records))]
    (answers, predictions), (answers_again, predictions_again) = SEEN
    assert answers == answers_again == wanted
    assert predictions == predictions_again
    assert len(predictions) == len(answers)


def of_pairs(folder, data_dir, records, **choices):
    """A task of the records, each an object of texts."""
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = FileSource(
        files={"validation": str(path)}, fields=tuple(records[0]), data_dir=data_dir
    )
    return Task(
        source=source,
        vocabulary=small.ByteVocabulary(),
        objective=Supervised(inputs_length=16, targets_length=8),
        **{"inputs": "{question}", "targets": "{answer}", **choices},
    )


def scores_of(task, mesh=Mesh(data=8), batch_size=8, model=None, decoding=Decoding()):  # noqa: B008
    model = model or EncoderDecoder(small.config())
    layout = (
        EncoderDecoderLayout(16, 8)
        if isinstance(model, EncoderDecoder)
        else DecoderLayout(24, has_inputs=True)
    )
    evaluate = make_evaluate(
        *(model, task, layout, CrossEntropy(), mesh.make()),
        split="validation",
        batch_size=batch_size,
        decoding=decoding,
    )
    return evaluate(small.params(model))


WORDS = ["red", "green", "blue", "black"]


@pytest.mark.proof
def test_the_most_likely_choice_is_predicted(tmp_path, data_dir):
    losses = []
    for word in WORDS:
        only = of_pairs(tmp_path, data_dir, [{"question": "colour 3", "answer": word}])
        made = scores_of(only)
        losses.append(made["cross_entropy_nats_per_token"] * made["target_tokens"])
    best = WORDS[losses.index(min(losses))]
    for word in WORDS:
        records = [{"question": "colour 3", "answer": word}]
        made = of_pairs(tmp_path, data_dir, records, choices=WORDS, metrics=["exact_match"])
        assert scores_of(made)["exact_match_fraction"] == float(word == best)


def test_choices_and_references_can_be_lists_in_fields(tmp_path, data_dir):
    records = [
        {"question": "q", "answer": "none", "right": ["yes", "no"], "options": ["yes", "no"]},
        {"question": "q", "answer": "none", "right": ["maybe"], "options": ["yes", "no"]},
    ]
    task = of_pairs(
        *(tmp_path, data_dir, records),
        references="right",
        choices="options",
        metrics=["exact_match"],
    )
    assert scores_of(task)["exact_match_fraction"] == 0.5


def test_scores_of_categories_add_up_to_those_of_the_whole(tmp_path, data_dir):
    records = [
        {"question": f"word {n}", "answer": "ab" * (n % 3 + 1), "lang": "ende"[n % 2 * 2 :][:2]}
        for n in range(13)
    ]
    task = of_pairs(tmp_path, data_dir, records, category="lang", metrics=["word_f1"])
    made = scores_of(task)
    parts = [f"lang={name}/" for name in ("de", "en")]
    for name in ("target_tokens", "examples"):
        assert sum(made[part + name] for part in parts) == made[name]
    for name in ("cross_entropy_nats_per_token", "accuracy_fraction"):
        of_parts = [made[part + name] * made[part + "target_tokens"] for part in parts]
        assert sum(of_parts) / made["target_tokens"] == pytest.approx(made[name])
    assert {part + "word_f1_fraction" for part in parts} < made.keys()


def test_bits_per_byte_and_sequence_accuracy_follow_their_definitions(tmp_path, data_dir):
    # Every byte is a token, and every target has one more, its end.
    records = [{"question": "q", "answer": "grün"}, {"question": "q", "answer": "rot"}]
    made = scores_of(of_pairs(tmp_path, data_dir, records))
    nats = made["cross_entropy_nats_per_token"] * made["target_tokens"]
    assert made["target_tokens"] == 5 + 3 + 2
    assert made["bits_per_byte"] == pytest.approx(nats / math.log(2) / 8)
    assert made["sequence_accuracy_fraction"] == 0.0


def test_a_decoder_only_model_generates_answers(tmp_path, data_dir):
    records = [{"question": f"word {n}", "answer": "ab"} for n in range(5)]
    task = of_pairs(tmp_path, data_dir, records, metrics=["tests.inference.test_evaluate:remember"])
    model = DecoderOnly(small.decoder_config())
    scores_of(task, model=model)
    predict = make_predict(
        *(model, Mesh().make(), Decoding()),
        stop_ids=(1,),
        inputs_length=16,
        targets_length=8,
        batch_size=8,
    )
    inputs = [np.append(task.vocabulary.encode(record["question"]), 1) for record in records]
    prompts = [Prompt(inputs=ids.astype(np.int32)) for ids in inputs]
    found = predict(small.params(model), prompts)
    assert SEEN[-1][1] == [task.vocabulary.decode(best.tokens) for best, *_ in found]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"category": "land"}, "Task.category names the field 'land'; did you mean 'lang'"),
        ({"references": "right"}, "Task.references names the field 'right'"),
        (
            {"choices": ["a"], "metrics": []},
            "Task.choices must be None without metrics, .*; name some in Task.metrics",
        ),
        ({"choices": "lang"}, "field 'lang' of record 0 must be a list of texts"),
        ({"choices": "answer"}, "field 'answer' of record 0 must be a list of texts, got a"),
        ({"references": "lang"}, "field 'lang' of record 0 must be a text, a list of texts, or an"),
    ],
)
def test_unfitting_fields_are_errors(choices, message, tmp_path, data_dir):
    records = [{"question": "q", "answer": "a", "lang": [3]}]
    choices = {"metrics": ["exact_match"], **choices}
    with pytest.raises(UserError, match=message):
        scores_of(of_pairs(tmp_path, data_dir, records, **choices))


@pytest.mark.parametrize("name", ["min_length", "max_length"])
def test_decoding_beyond_the_tasks_maximum_is_an_error(name, tmp_path, data_dir):
    task = of_pairs(tmp_path, data_dir, [{"question": "q", "answer": "a"}], metrics=["exact_match"])
    rule = rf"Decoding.{name} must be at most Supervised.targets_length \(8\), got 9"
    with pytest.raises(UserError, match=rule):
        scores_of(task, decoding=Decoding(**{name: 9}))


def shout(record):
    """A step that metrics undo."""
    return {"text": record["text"].upper()}
