import pytest

from t5lite.inference.evaluate import make_evaluate
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.losses import CrossEntropy
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
