import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import t5lite.inference.decoding as decoding_module
import t5lite.inference.sampling as sampling
from t5lite.core.errors import UserError
from t5lite.inference.beam_search import beam_search
from t5lite.inference.decoding import OF_BEAMS, Decoding
from t5lite.inference.filters import keep_top_k, keep_top_p
from t5lite.inference.highest import top_k
from t5lite.inference.sampling import sample
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.parallel.mesh import Mesh
from t5lite.parallel.sharding import batch_sharding, by_rows, on_mesh
from t5lite.planning.program_text import COLLECTIVES, Program
from tests import small
from tests.models import reference
from tests.models.families import FAMILIES
from tests.proofs import proof

EOS = 1
# Few enough tokens to enumerate all targets of four.
CONFIG = small.config(vocab_size=6, embed_dim=8)
MODEL = EncoderDecoder(CONFIG)


def params(sharpness=3.0):
    made = small.params(MODEL)
    # Otherwise all tokens would be about equally likely.
    return jax.tree.map(lambda p: p * sharpness, made)


def batch(rows=3):
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 6, (rows, 5)).astype(np.int32)
    return {"encoder_input_tokens": tokens, "encoder_segment_ids": np.ones_like(tokens)}


@functools.cache
def _jitted(search, decoding_names, length):
    del decoding_names
    return jax.jit(
        lambda params, batch, decoding, **rest: search(
            MODEL, params, batch, decoding, length=length, stop_ids=(EOS,), **rest
        )
    )


def beams(decoding, length=4, given=None):
    return _jitted(beam_search, "beams", length)(params(), given or batch(), decoding)


def samples(decoding, length=4, given=None, seed=0):
    given = given or batch()
    keys = jax.random.split(jax.random.key(seed), len(given["encoder_input_tokens"]))
    return _jitted(sample, "samples", length)(params(), given, decoding, keys=keys)


def log_probability(row, target):
    """Returns the log-probability of a target that is read at once."""
    given = {name: x[row : row + 1] for name, x in batch().items()}
    tokens = np.array([[0, *target[:-1]]], np.int32)
    given |= {"decoder_input_tokens": tokens, "decoder_segment_ids": np.ones_like(tokens)}
    logs = np.asarray(jax.nn.log_softmax(small.logits(MODEL, params(), given)), np.float64)[0]
    return sum(logs[position, token] for position, token in enumerate(target))


@functools.cache
def all_targets(row, length=4):
    """Returns the log-probability of every target: those that end, and those of full length."""
    targets = []
    for size in range(1, length + 1):
        for tokens in itertools.product(range(6), repeat=size):
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or size == length):
                targets.append(tokens)
    by_size = {size: [t for t in targets if len(t) == size] for size in range(1, length + 1)}
    found = {}
    for size, some in by_size.items():
        tokens = np.array([[0, *t[:-1]] for t in some], np.int32)
        given = {name: np.repeat(x[row : row + 1], len(some), 0) for name, x in batch().items()}
        given |= {"decoder_input_tokens": tokens, "decoder_segment_ids": np.ones_like(tokens)}
        logs = np.asarray(jax.nn.log_softmax(small.logits(MODEL, params(), given)), np.float64)
        sums = np.take_along_axis(logs, np.array(some)[..., None], 2)[..., 0].sum(1)
        found |= dict(zip(some, sums, strict=True))
        assert size == len(some[0])
    return found


def stripped(tokens):
    """Returns a target without the padding after its end."""
    tokens = tokens.tolist()
    return tuple(tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_wide_enough_beam_finds_the_best_of_all_targets(alpha):
    made = beams(Decoding(num_beams=40, length_penalty=alpha))
    for row in range(3):
        ranked = sorted(
            all_targets(row).items(), key=lambda pair: -pair[1] / ((5 + len(pair[0])) / 6) ** alpha
        )
        for rank in range(5):
            assert stripped(made.tokens[row, rank]) == ranked[rank][0]
            assert float(made.log_probabilities[row, rank]) == pytest.approx(
                ranked[rank][1], abs=1e-4
            )


def test_one_beam_is_greedy():
    # As an input of the program; a user cannot bind it for one beam.
    one = beams(Decoding(num_beams=1, length_penalty=np.float32(0.0)))
    greedy = samples(Decoding())
    np.testing.assert_array_equal(one.tokens, greedy.tokens)
    np.testing.assert_allclose(one.log_probabilities, greedy.log_probabilities, rtol=1e-5)


def test_greedy_takes_the_most_likely_token_of_each_step():
    made = samples(Decoding())
    for row in range(3):
        target = stripped(made.tokens[row, 0])
        for position, token in enumerate(target):
            log_probabilities = [
                log_probability(row, (*target[:position], other)) for other in range(6)
            ]
            assert token == int(np.argmax(log_probabilities))


def test_greedy_follows_the_float64_reference():
    model = EncoderDecoder(small.config())
    weights, given = small.params(model, seed=3), small.batch(3)
    given = {name: x for name, x in given.items() if name.startswith("encoder_")}
    wide = reference.float64(weights)
    # Any id may serve as the end; a frequent one makes rows end early.
    free = greedy_by_hand(model.config, wide, given, 7, stop_id=-1)
    stop_id = int(free[0, 3])
    written = jax.jit(
        lambda p, b: sample(
            *(model, p, b, Decoding()),
            length=7,
            stop_ids=(stop_id,),
            keys=jax.random.split(jax.random.key(0), 4),
        )
    )(weights, given).tokens[:, 0]
    expected = greedy_by_hand(model.config, wide, given, 7, stop_id=stop_id)
    np.testing.assert_array_equal(written, expected)
    assert (np.asarray(written)[0, 4:] == 0).all()


@pytest.mark.parametrize("name", ["t5gemma", proof("t5gemma_2"), proof("redllm")])
def test_beams_have_the_log_probabilities_of_the_float64_reference(name):
    model = FAMILIES[name]
    weights, given = dict(small.params(model, seed=4)), small.batch(4)
    # Otherwise one token would have nearly all of the probability.
    weights["token_embedder"] = jax.tree.map(lambda x: 0.2 * x, weights["token_embedder"])
    given = {name: x for name, x in given.items() if name.startswith("encoder_")}
    made = jax.jit(
        lambda p, b: beam_search(model, p, b, Decoding(num_beams=3), length=6, stop_ids=(EOS,))
    )(weights, given)
    for beam in range(3):
        tokens = np.asarray(made.tokens[:, beam])
        inputs = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=model.config.start_token)
        read = {"decoder_input_tokens": inputs, "decoder_segment_ids": np.ones_like(inputs)}
        logs = log_softmax(reference.logits(weights, {**given, **read}, model.config), axis=-1)
        picked = np.take_along_axis(logs, tokens[..., None], axis=-1)[..., 0]
        ended = np.cumsum(np.pad(tokens[:, :-1], ((0, 0), (1, 0))) == EOS, axis=1) > 0
        expected = (picked * ~ended).sum(axis=1)
        # Logits of up to 10 that were rounded in each of four layers, and six sums of them.
        np.testing.assert_allclose(made.log_probabilities[:, beam], expected, rtol=1e-5)


def greedy_by_hand(config, weights, given, length, *, stop_id):
    written = np.zeros((len(given["encoder_input_tokens"]), 0), np.int64)
    for _ in range(length):
        inputs = np.pad(written, ((0, 0), (1, 0)))
        read = {"decoder_input_tokens": inputs, "decoder_segment_ids": np.ones_like(inputs)}
        token = reference.logits(weights, {**given, **read}, config)[:, -1].argmax(-1)
        ended = (written == stop_id).any(axis=1)
        written = np.column_stack([written, np.where(ended, 0, token)])
    return written


def test_scores_are_sums_of_teacher_forced_log_probabilities():
    made = samples(Decoding(temperature=1.0, num_samples=4))
    for row, hypothesis in itertools.product(range(3), range(4)):
        target = stripped(made.tokens[row, hypothesis])
        expected = log_probability(row, target)
        assert float(made.log_probabilities[row, hypothesis]) == pytest.approx(expected, abs=1e-4)
    sums = np.asarray(made.log_probabilities)
    assert (np.diff(sums, axis=1) <= 0).all()


@pytest.mark.proof
def test_samples_follow_the_softmax_with_top_k_and_top_p():
    given = {name: np.repeat(x[:1], 100, 0) for name, x in batch().items()}
    decoding = Decoding(temperature=1.3, top_k=4, top_p=0.9, num_samples=1000)
    drawn = np.asarray(samples(decoding, length=1, given=given).tokens).reshape(-1)
    assert len(drawn) == 100_000
    logits = np.array([log_probability(0, (token,)) for token in range(6)]) / 1.3
    logits[np.argsort(-logits)[4:]] = -np.inf
    expected = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-expected)
    kept = order[: int((np.cumsum(expected[order]) < 0.9).sum()) + 1]
    expected = np.where(np.isin(np.arange(6), kept), expected, 0.0)
    expected /= expected.sum()
    counts = np.bincount(drawn, minlength=6)
    assert (counts[expected == 0] == 0).all()
    seen = expected > 0
    chi_squared = np.sum((counts - 100_000 * expected)[seen] ** 2 / (100_000 * expected[seen]))
    # Of at most three degrees of freedom; larger once in ten thousand times. The seed is fixed.
    assert chi_squared < 21.1


@pytest.mark.proof
def test_samples_of_a_row_depend_on_its_own_key_only():
    given = batch()
    keys = jax.random.split(jax.random.key(5), 3)
    decoding = Decoding(temperature=1.0, num_samples=3)
    run = _jitted(sample, "samples", 4)
    whole = run(params(), given, decoding, keys=keys)
    last = {name: x[2:] for name, x in given.items()}
    alone = run(params(), last, decoding, keys=keys[2:])
    np.testing.assert_array_equal(whole.tokens[2], alone.tokens[0])


@pytest.mark.proof
def test_samples_do_not_depend_on_how_many_share_a_cache(monkeypatch):
    keys = jax.random.split(jax.random.key(3), 3)
    decoding = Decoding(temperature=1.0, num_samples=5)

    def draw(together):
        monkeypatch.setattr(sampling, "MAX_SAMPLES_PER_CACHE", together)
        options = {"length": 3, "stop_ids": (EOS,), "keys": keys}
        return jax.jit(lambda p, b: sample(MODEL, p, b, decoding, **options))(params(), batch())

    apart, together = draw(2), draw(5)
    np.testing.assert_array_equal(apart.tokens, together.tokens)
    np.testing.assert_allclose(apart.scores, together.scores, rtol=1e-5)


@pytest.mark.parametrize("search", [beams, proof(samples)])
def test_targets_keep_the_minimum_and_maximum_length(search):
    beam = {"num_beams": 3} if search is beams else {"temperature": 2.0, "num_samples": 3}
    numbers = {"min_length": jnp.array([0, 3, 0]), "max_length": jnp.array([4, 4, 2])}
    made = search(Decoding(**beam, **numbers))
    lengths = np.array([[len(stripped(t)) for t in row] for row in np.asarray(made.tokens)])
    assert (lengths[1] > 3).all()
    assert (np.asarray(made.tokens)[2, :, 2:] == 0).all()


def test_a_prompt_is_read_whatever_its_position_in_the_row():
    prompts = np.array([[0, 0, 3], [0, 4, 5], [0, 0, 0]], np.int32)
    segments = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1]], np.int32)
    given = {**batch(), "decoder_input_tokens": prompts, "decoder_segment_ids": segments}
    made = samples(Decoding(), given=given)
    for row, start in enumerate([(3,), (4, 5), ()]):
        best = stripped(made.tokens[row, 0])
        log_probabilities = [log_probability(row, (*start, token)) for token in range(6)]
        assert best[0] == int(np.argmax(log_probabilities))


def test_a_decoder_only_model_continues_its_prompt():
    model = DecoderOnly(small.decoder_config(vocab_size=6, embed_dim=8))
    weights = small.params(model)
    prompt = {
        "decoder_input_tokens": jnp.array([[0, 3, 4], [0, 0, 2]]),
        "decoder_segment_ids": jnp.array([[1, 1, 1], [0, 1, 1]]),
    }
    made = jax.jit(
        lambda p: beam_search(model, p, prompt, Decoding(num_beams=2), length=3, stop_ids=(EOS,))
    )(weights)
    tokens = np.array([[0, 3, 4, *made.tokens[0, 0, :2]]], np.int32)
    given = {"decoder_input_tokens": tokens, "decoder_segment_ids": np.ones_like(tokens)}
    log_probabilities = np.asarray(jax.nn.log_softmax(small.logits(model, weights, given)))[0, 2:]
    target = stripped(made.tokens[0, 0])
    expected = sum(log_probabilities[position, token] for position, token in enumerate(target))
    assert float(made.log_probabilities[0, 0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("search", "decoding"),
    [
        (beam_search, Decoding(num_beams=3)),
        (sample, Decoding(temperature=1.0, num_samples=2)),
    ],
    ids=["beams", "samples"],
)
def test_a_growing_cache_changes_nothing(search, decoding, monkeypatch):
    prompts = np.array([[0, 0, 3], [0, 4, 5], [0, 0, 0]], np.int32)
    segments = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1]], np.int32)
    given = {**batch(), "decoder_input_tokens": prompts, "decoder_segment_ids": segments}
    keys = {} if search is beam_search else {"keys": jax.random.split(jax.random.key(7), 3)}
    # Flat, so that few targets end before the cache has grown from 2 to 4, 8 and 11.
    weights = params(sharpness=1.0)

    def generate(capacity):
        monkeypatch.setattr(decoding_module, "FIRST_CAPACITY", capacity)
        options = {"length": 11, "stop_ids": (EOS,), **keys}
        return jax.jit(lambda p, b: search(MODEL, p, b, decoding, **options))(weights, given)

    grown, at_once = generate(2), generate(64)
    np.testing.assert_array_equal(grown.tokens, at_once.tokens)
    np.testing.assert_allclose(grown.scores, at_once.scores, rtol=1e-5)
    assert max(len(stripped(t)) for row in np.asarray(grown.tokens) for t in row) > 8


@pytest.mark.parametrize(
    ("groups", "size", "k"), [(1, 5, 2), (1, 1000, 3), (4, 1000, 8), (3, 300, 1), (1, 4096, 8)]
)
def test_top_k_equals_a_stable_sort(groups, size, k):
    # Whole numbers, so that many are equal.
    rng = np.random.default_rng(size)
    scores = rng.integers(-9, 9, (7, groups, size)).astype(np.float32)
    shifts = rng.integers(-3, 3, (7, groups)).astype(np.float32)
    found, places = jax.jit(top_k, static_argnums=2)(scores, shifts, k)
    scores = (scores + shifts[..., None]).reshape(7, -1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(found, np.take_along_axis(scores, order, axis=1))


def test_filters_equal_sorting():
    logits = jax.random.normal(jax.random.key(0), (50, 300)) * 4
    ranks = np.argsort(np.argsort(-np.asarray(logits), axis=1), axis=1)
    k = np.arange(50)
    kept = np.isfinite(keep_top_k(logits, jnp.asarray(k)))
    np.testing.assert_array_equal(kept, np.where(k[:, None] > 0, ranks < k[:, None], True))
    p = np.linspace(0.02, 0.99, 50).astype(np.float32)
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    before = -np.sort(-probabilities, axis=1).cumsum(axis=1)
    needed = (before < p[:, None]).sum(axis=1) + 1
    kept = np.isfinite(keep_top_p(logits, jnp.asarray(p))).sum(axis=1)
    np.testing.assert_array_equal(kept, needed)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"max_length": 10**10}, "max_length must be at most 1,048,576, got 10000000000"),
        ({"num_beams": 2, "temperature": 1.0}, "conflicts with Decoding.temperature and"),
        ({"num_samples": 2}, "num_samples over 1 needs Decoding.temperature"),
        ({"temperature": 0.0}, "temperature must be over 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_k": 3}, "top_k needs Decoding.temperature, got top_k=3"),
        ({"top_p": 0.5}, "top_p needs Decoding.temperature, got top_p=0.5"),
        ({"max_length": 2.5}, "max_length must be a whole number, got 2.5"),
        ({"min_length": 9, "max_length": 5}, r"at most Decoding.max_length \(5\), got 9"),
        ({"num_beams": 4, "num_beam_groups": 2}, "and vice versa, got 2 groups and a penalty of 0"),
        (
            {"num_beams": 4, "diversity_penalty": 1.0},
            "and vice versa, got 1 groups and a penalty",
        ),
        (
            {"length_penalty": 1.0},
            "length_penalty must be 0.6 with one beam, which it has no effect on, got 1.0; leave",
        ),
        ({"length_normalization": "tokens"}, "length_normalization must be 'gnmt' with one beam"),
        (
            {"early_stopping": "full", "num_samples": 3, "temperature": 1.0},
            "early_stopping must be 'never' with one beam.*, or raise Decoding.num_beams",
        ),
        ({"diversity_penalty": 1.0}, "over 1 needs a Decoding.diversity_penalty over 0 and vice"),
        ({"stop_ids": [-1]}, r"stop_ids must be token ids, got \(-1,\)"),
    ],
)
def test_invalid_decoding_is_an_error(choices, message):
    with pytest.raises(UserError, match=message):
        Decoding(**choices)


def test_fields_of_beam_search_may_have_their_defaults_with_one_beam():
    usual = Decoding()
    values = {name: getattr(usual, name) for name in OF_BEAMS}
    assert Decoding(**values, num_beams=1) == usual


@pytest.mark.proof
@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"data": 8}, set()),
        # Parameters are sharded, so all devices must take the same number of steps.
        ({"data": 4, "fsdp": 2}, {("all-reduce", ("pred", ()))}),
    ],
    ids=["data", "fsdp"],
)
def test_data_parallel_decoding_communicates_at_most_a_done_flag(num_beams, axes, expected):
    # Large enough that top_k works by chunks.
    model = EncoderDecoder(small.config(vocab_size=2048, num_decoder_layers=1))
    mesh, given = Mesh(**axes).make(), batch(rows=8)
    decoding = Decoding(num_beams=num_beams, min_length=2)

    def generate(params, batch, numbers):
        search = beam_search
        if num_beams == 1:
            search = functools.partial(sample, keys=jax.vmap(jax.random.key)(numbers))
        return search(model, params, batch, decoding, length=4, stop_ids=(EOS,))

    rows = batch_sharding(mesh, 8)
    with on_mesh(mesh):
        jitted = jax.jit(
            by_rows(generate, mesh), in_shardings=(None, rows, rows), out_shardings=rows
        )
        lowered = jitted.lower(small.params(model), given, np.arange(8))
        program = Program(lowered.compile().as_text())
    exchanged = {
        (instruction.operation, *instruction.shapes)
        for instructions in program.computations.values()
        for instruction in instructions.values()
        if instruction.operation in COLLECTIVES
    }
    assert exchanged == expected
