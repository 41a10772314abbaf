import functools
import logging

import jax
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.inference.decoding import Decoding
from t5lite.inference.predict import Prompt, make_predict
from t5lite.inference.score import make_score
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.parallel.mesh import Mesh
from tests import small
from tests.proofs import proof

EOS = 1
MODEL = EncoderDecoder(small.config(vocab_size=12))
EXPERTS = EncoderDecoder(small.config(vocab_size=12, num_experts=4, capacity_factor=0.5))
PREFIX_LM = DecoderOnly(small.decoder_config(vocab_size=12, prefix_attention=True))


def params(model=MODEL):
    # Otherwise all tokens would be about equally likely.
    return jax.tree.map(lambda p: p * 1.5, small.params(model))


def prompts(count=11, **changes):
    rng = np.random.default_rng(3)
    return [
        Prompt(
            inputs=rng.integers(2, 12, rng.integers(1, 17)).astype(np.int32), number=n, **changes
        )
        for n in range(count)
    ]


def predict(given, decoding=Decoding(), *, model=MODEL, mesh=Mesh(data=1), batch_size=4):  # noqa: B008
    return maker(model, mesh, decoding, batch_size)(params(model), given)


@functools.cache
def maker(model, mesh, decoding, batch_size):
    """Returns one function per setting, so that tests share its compiled programs."""
    devices = jax.devices()[: 8 if mesh != Mesh(data=1) else 1]
    return make_predict(
        model,
        mesh.make(devices),
        decoding,
        stop_ids=(EOS,),
        inputs_length=50,
        targets_length=7,
        batch_size=batch_size,
    )


@functools.cache
def scorer(model):
    return make_score(
        model,
        Mesh(data=1).make(jax.devices()[:1]),
        inputs_length=50,
        targets_length=20,
        batch_size=4,
    )


def tokens_of(targets):
    return [[target.tokens.tolist() for target in each] for each in targets]


def scores(targets):
    return np.array([[target.score for target in each] for each in targets])


@pytest.mark.parametrize(
    ("model", "decoding"),
    [
        (MODEL, Decoding()),
        proof(MODEL, Decoding(num_beams=4, num_beam_groups=2, diversity_penalty=0.7)),
        proof(MODEL, Decoding(temperature=1.2, top_k=5, num_samples=2)),
        proof(PREFIX_LM, Decoding(num_beams=3)),
        proof(EXPERTS, Decoding(num_beams=2)),
    ],
    ids=["greedy", "groups", "samples", "beams_of_a_prefix_lm", "beams_of_experts"],
)
def test_targets_depend_neither_on_batch_nor_order_nor_mesh(decoding, model):
    given = prompts()
    together = predict(given, decoding, model=model)
    alone = [predict([prompt], decoding, model=model)[0] for prompt in given[:3]]
    assert tokens_of(together[:3]) == tokens_of(alone)
    np.testing.assert_allclose(scores(together[:3]), scores(alone), atol=1e-4)
    turned = predict(given[::-1], decoding, model=model, batch_size=8, mesh=Mesh(data=4, tensor=2))
    assert tokens_of(together) == tokens_of(turned[::-1])
    np.testing.assert_allclose(scores(together), scores(turned[::-1]), atol=1e-4)


@pytest.mark.parametrize("model", [MODEL, proof(PREFIX_LM)], ids=["encoder_decoder", "prefix_lm"])
def test_a_score_is_the_likelihood_of_the_target(model):
    given = prompts()
    found = predict(given, Decoding(num_beams=3), model=model)
    examples, expected = [], []
    for prompt, targets in zip(given, found, strict=True):
        for target in targets:
            # One that was not cut off was stopped.
            ended = len(target.tokens) < 7
            tokens = np.append(target.tokens, EOS) if ended else target.tokens
            examples.append({"inputs": prompt.inputs, "targets": tokens.astype(np.int32)})
            expected.append(target.score)
    made = scorer(model)
    found = made(params(model), examples)
    np.testing.assert_allclose([one.score for one in found], expected, atol=1e-4)
    assert [one.target_tokens for one in found] == [len(e["targets"]) for e in examples]


@pytest.mark.parametrize("model", [MODEL, proof(PREFIX_LM)], ids=["encoder_decoder", "prefix_lm"])
def test_a_target_begins_with_its_prefix(model):
    free = prompts(4)
    prefix = np.array([5, 7, 3], np.int32)
    forced = prompts(4, prefix=prefix)
    # Some with, some without, in one batch.
    mixed = [free[0], *forced[1:]]
    found = predict(mixed, model=model)
    assert tokens_of(found[:1]) == tokens_of(predict(free[:1], model=model))
    made = scorer(model)
    for prompt, (target,) in zip(forced[1:], found[1:], strict=True):
        assert target.tokens[:3].tolist() == prefix.tolist()
        ended = len(target.tokens) < 10
        whole = np.append(target.tokens, EOS).astype(np.int32) if ended else target.tokens
        likelihoods = made(
            params(model),
            [{"inputs": prompt.inputs, "targets": targets} for targets in (whole, prefix)],
        )
        after_prefix = likelihoods[0].score - likelihoods[1].score
        assert target.score == pytest.approx(after_prefix, abs=1e-4)


def test_a_prompt_can_have_its_own_numbers():
    given = prompts()
    usual = tokens_of(predict(given))
    index = next(n for n, (target,) in enumerate(usual) if len(target) > 2)
    own = Prompt(inputs=given[index].inputs, decoding={"max_length": 2})
    changed = tokens_of(predict([*given[:index], own, *given[index + 1 :]]))
    assert changed[index][0] == usual[index][0][:2]
    assert [t for n, t in enumerate(changed) if n != index] == [
        t for n, t in enumerate(usual) if n != index
    ]


def test_targets_end_at_stop_ids():
    given = prompts()
    usual = tokens_of(predict(given))
    index = next(n for n, (target,) in enumerate(usual) if len(target) > 2)
    stop = usual[index][0][2]
    (stopped,) = tokens_of(predict(given, Decoding(stop_ids=[stop])))[index]
    assert stopped == usual[index][0][: usual[index][0].index(stop)]


@pytest.mark.proof
def test_a_search_with_more_beams_than_hypotheses_returns_only_hypotheses():
    # One token of 12 is a whole target here.
    decoding = Decoding(num_beams=20, max_length=1)
    (found,) = predict(prompts(1), decoding, batch_size=1)
    assert len(found) == 12
    assert all(-100 < target.score < 0 for target in found)


@pytest.mark.proof
def test_samples_depend_on_the_number_of_the_prompt_only():
    decoding = Decoding(temperature=1.5, num_samples=3)
    given = prompts()
    some = [given[7], given[2]]
    together = tokens_of(predict(given, decoding))
    assert tokens_of(predict(some, decoding)) == [together[7], together[2]]
    again = [Prompt(inputs=given[7].inputs, number=8)]
    assert tokens_of(predict(again, decoding)) != tokens_of(predict(given[7:8], decoding))


@pytest.mark.proof
def test_each_length_bucket_compiles_one_program(caplog):
    lengths = [3, 9, 16, 17, 30, 33, 40, 5, 12, 31]
    given = [Prompt(inputs=np.full(length, 4, np.int32)) for length in lengths]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        predict(given, batch_size=2)
    finished = [
        m for m in caplog.messages if m.startswith("Finished XLA compilation of jit(generate")
    ]
    # Rows of 16, 32 and 64.
    assert len(finished) == 3, finished


@pytest.mark.parametrize("model", [MODEL, proof(PREFIX_LM)], ids=["encoder_decoder", "prefix_lm"])
def test_prefixes_of_many_lengths_share_one_program(model, caplog):
    given = [
        Prompt(inputs=np.full(5, 4, np.int32), prefix=np.full(length, 5, np.int32))
        for length in (1, 2, 3, 5, 6, 7)
    ]
    made = maker.__wrapped__(model, Mesh(data=1), Decoding(), 2)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        made(params(model), given)
    finished = [
        m for m in caplog.messages if m.startswith("Finished XLA compilation of jit(generate")
    ]
    assert len(finished) == 1, finished


def test_a_stop_id_outside_the_vocabulary_is_an_error():
    with pytest.raises(UserError, match=r"under T5Config.vocab_size \(12\), got 12"):
        predict(prompts(1), Decoding(stop_ids=[12]))


def test_progress_counts_finished_prompts():
    done = []
    maker(MODEL, Mesh(data=1), Decoding(), 4)(params(), prompts(6), done.append)
    assert done == [4, 6]


@pytest.mark.proof
def test_groups_of_beams_differ_by_the_diversity_penalty():
    """Compares with a search in plain Python, one row and one group after another."""
    decoding = Decoding(
        num_beams=4, num_beam_groups=2, diversity_penalty=3.0, length_penalty=0.0, max_length=4
    )
    (prompt,) = prompts(1)
    (found,) = predict([prompt], decoding)
    expected = diverse_by_hand(prompt.inputs, groups=2, beams=2, penalty=3.0, length=4)
    assert tokens_of([found])[0] == [tokens for _, _, tokens in expected]
    np.testing.assert_allclose(scores([found])[0], [sums for _, sums, _ in expected], atol=1e-4)
    # Without a penalty both groups would find the same.
    assert len({tuple(tokens) for _, _, tokens in expected}) > 2


def diverse_by_hand(inputs, *, groups, beams, penalty, length):
    def log_probabilities(tokens):
        row = {
            "encoder_input_tokens": inputs[None],
            "encoder_segment_ids": np.ones_like(inputs)[None],
            "decoder_input_tokens": np.array([[0, *tokens]], np.int32),
            "decoder_segment_ids": np.ones((1, len(tokens) + 1), np.int32),
        }
        logits = small.logits(MODEL, params(), row)[0, -1]
        return np.asarray(jax.nn.log_softmax(logits), np.float64)

    live = [[(0.0, 0.0, [])] for _ in range(groups)]
    done = [[] for _ in range(groups)]
    is_open = [True] * groups
    for position in range(length):
        taken = np.zeros(12)
        for group in range(groups):
            candidates = [
                (rank + step - penalty * taken[token], sums + step, [*tokens, token])
                for rank, sums, tokens in live[group]
                for token, step in enumerate(log_probabilities(tokens))
            ]
            candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * beams]
            ends = [c[2][-1] == EOS or position + 1 == length for c in candidates]
            if is_open[group]:
                done[group] += [c for c, e in zip(candidates[:beams], ends, strict=False) if e]
                done[group] = sorted(done[group], key=lambda c: -c[0])[:beams]
            live[group] = [c for c, e in zip(candidates, ends, strict=True) if not e][:beams]
            worst = min((c[0] for c in done[group]), default=-np.inf)
            best = max((c[0] for c in live[group]), default=-np.inf)
            is_open[group] &= len(done[group]) < beams or best > worst
            for _, _, tokens in live[group] if is_open[group] else ():
                taken[tokens[-1]] += 1
    found = sorted((c for group in done for c in group), key=lambda c: -c[0])
    return [(r, s, [t for t in tokens if t != EOS]) for r, s, tokens in found]


def test_a_batch_that_the_mesh_does_not_divide_is_an_error():
    with pytest.raises(UserError, match="batch_size of decoding.* must be divisible"):
        predict(prompts(2), mesh=Mesh(data=8), batch_size=4)


def test_the_loop_ends_with_the_last_row():
    """Rows of padding, and those that are done, do not keep the others waiting."""
    trace = []

    class Counted(EncoderDecoder):
        def extend_by_one(self, tokens, may_see, position, cache):
            jax.debug.callback(lambda _: trace.append(1), position)
            return super().extend_by_one(tokens, may_see, position, cache)

    model = Counted(MODEL.config)
    made = make_predict(
        *(model, Mesh(data=1).make(jax.devices()[:1]), Decoding(max_length=3)),
        stop_ids=(EOS,),
        inputs_length=50,
        targets_length=50,
        batch_size=4,
    )
    made(params(), prompts(1))
    jax.effects_barrier()
    # The first token is of the prompt's logits.
    assert len(trace) == 2, len(trace)


def test_every_target_begins_with_the_forced_first_ids():
    forcing = make_predict(
        *(MODEL, Mesh(data=1).make(jax.devices()[:1]), Decoding()),
        stop_ids=(EOS,),
        first_ids=(7,),
        inputs_length=50,
        targets_length=7,
        batch_size=4,
    )
    forced = forcing(params(), prompts())
    given = predict(prompts(prefix=np.array([7], np.int32)))
    assert all(best.tokens[0] == 7 for (best,) in forced)
    for (one,), (other,) in zip(forced, given, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
