import pytest

from t5lite.data.features import EncoderDecoderLayout
from t5lite.data.task import Task
from t5lite.inference.evaluate import make_evaluate
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.losses import CrossEntropy
from t5lite.objectives.supervised import Supervised
from t5lite.parallel.mesh import Mesh
from tests import small


def test_only_what_is_counted_is_scored(text_file, data_dir):
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


def remember(targets, predictions):
    """A metric of one's own."""
    SEEN.append((list(targets), list(predictions)))
    return {"same_fraction": sum(map(str.__eq__, targets, predictions)) / len(targets)}


def test_metrics_see_every_target_once_and_what_was_written(text_file, data_dir):
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
        )
        scores = evaluate(params)
        assert {"same_fraction", "word_f1_fraction", "perplexity"} < scores.keys()
    records = source.records("validation")
    wanted = [records[n]["text"][:11] for n in range(len(records))]
    (targets, predictions), (targets_again, predictions_again) = SEEN
    assert targets == targets_again == wanted
    assert predictions == predictions_again
    assert len(predictions) == len(targets)


def shout(record):
    """A step that metrics undo."""
    return {"text": record["text"].upper()}
