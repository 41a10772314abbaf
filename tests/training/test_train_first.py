import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.core.run_directory import read_metrics
from t5lite.optimizers.adafactor import adafactor
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.training.feed import open_feed
from t5lite.training.one_program import check_one_program
from t5lite.training.step import lower_train_step
from t5lite.training.train_first import TrainFirst
from tests import small

CROSS = "decoder/layers/encoder_decoder_attention/.*"
FIRST = {"train_first": TrainFirst(parameters=(CROSS,), steps=2)}


@pytest.fixture(scope="module")
def states(text_file, data_dir, tmp_path_factory):
    """The state after each of four steps, the first two of which train cross-attention alone."""
    choices = {**FIRST, "max_gradient_norm": 0.1}
    folder = tmp_path_factory.mktemp("first")
    run = small.run(text_file, data_dir, folder, total_steps=4, **choices)
    program = small.program_of(run)
    step = lower_train_step(program).compile()
    feed = open_feed(program, None, log=print)
    state = program.init(program.hyper)
    states = [jax.device_get(state)]
    with contextlib.closing(feed) as batches:
        for _ in range(4):
            state, _ = step(program.hyper, state, next(batches), {})
            states.append(jax.device_get(state))
    return states, choices


def moved(before, after):
    """The names of the parameters of which some bit changed."""
    after = by_name(after.params)
    return {n for n, x in by_name(before.params).items() if x.tobytes() != after[n].tobytes()}


@pytest.mark.proof
def test_others_keep_their_bits_until_the_step_and_move_after_it(states):
    steps, _ = states
    names = set(by_name(steps[0].params))
    cross = {name for name in names if name.startswith("decoder/layers/encoder_decoder")}
    assert len(cross) == 4
    changed = [moved(before, after) for before, after in itertools.pairwise(steps)]
    assert changed == [cross, cross, names, names]


@pytest.mark.proof
def test_a_run_that_resumes_while_some_train_first_equals_an_uninterrupted_one(
    states, make_run, tmp_path
):
    steps, choices = states
    small.train(make_run(tmp_path, total_steps=1, **choices))
    resumed = small.train(make_run(tmp_path, total_steps=4, **choices))
    jax.tree.map(np.testing.assert_array_equal, steps[-1], jax.device_get(resumed))


@pytest.mark.proof
def test_withheld_gradients_count_in_the_optimizer_state_but_not_in_the_update_norm(
    states, make_run, tmp_path
):
    steps, _ = states
    moments = by_name(steps[1].opt_state[0].mu)
    assert all(np.any(moment) for moment in moments.values())
    # With SGD, all that is different from a run that trains everything is what is withheld.
    sgd = make_optimizer(optax.sgd, name="sgd", learning_rate=0.1)
    first = small.train(make_run(tmp_path / "a", optimizer=sgd, total_steps=1, **FIRST))
    alone = small.train(make_run(tmp_path / "b", optimizer=sgd, total_steps=1, trainable=[CROSS]))
    for name, value in by_name(first.params).items():
        np.testing.assert_allclose(
            value, by_name(alone.params)[name], rtol=1e-6, atol=1e-7, err_msg=name
        )
    metrics = [read_metrics(tmp_path / name)[1] for name in ("a", "b")]
    assert metrics[0]["gradient_norm"] > metrics[1]["gradient_norm"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_chosen_keeps_every_bit_inside_a_program(dtype):
    first = TrainFirst(parameters=("b",), steps=3)
    old = {name: jnp.asarray([-0.0, 1e-40, jnp.nan], dtype) for name in "ab"}
    new = jax.tree.map(lambda x: x + 1, old)
    for step, expected in ((2, old), (3, new)):
        chosen = jax.jit(first.chosen)(step, new, old)
        assert np.asarray(chosen["a"]).tobytes() == np.asarray(expected["a"]).tobytes()
        assert np.asarray(chosen["b"]).tobytes() == np.asarray(new["b"]).tobytes()


@pytest.mark.proof
def test_the_number_of_steps_is_an_input_of_the_program(make_run, tmp_path):
    first, other = (
        make_run(tmp_path, train_first=TrainFirst(parameters=[CROSS], steps=n)) for n in (2, 3)
    )
    check_one_program(first, other, dropout=False)
    texts = [lower_train_step(small.program_of(run)).as_text() for run in (first, other)]
    assert texts[0] == texts[1]
    mlp = make_run(tmp_path, train_first=TrainFirst(parameters=[".*/mlp/.*"], steps=2))
    with pytest.raises(UserError, match="loss, bad steps, train_first"):
        check_one_program(first, mlp, dropout=False)


@pytest.mark.proof
def test_weight_decay_and_rounding_are_withheld_too(make_run, tmp_path):
    # Adafactor's decay does not depend on the learning rate, and bfloat16 is rounded at random.
    decays = make_optimizer(adafactor, name="A", learning_rate=0.05, weight_decay_rate=0.1)
    run = make_run(
        tmp_path, optimizer=decays, param_dtype="bfloat16", total_steps=2, microbatches=2, **FIRST
    )
    program = small.program_of(run)
    before = jax.device_get(program.init(program.hyper))
    after = jax.device_get(small.train(run))
    assert all(name.startswith("decoder/layers/encoder_decoder") for name in moved(before, after))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"parameters": []}, "TrainFirst.parameters must name at least one pattern, got none"),
        ({"parameters": ["("]}, r"TrainFirst.parameters must be regular expressions, got '\('"),
        ({"steps": 0}, "TrainFirst.steps must be a whole number from 1, got 0"),
        ({"steps": 1.5}, "TrainFirst.steps must be a whole number from 1, got 1.5"),
    ],
)
def test_choices_out_of_range_are_rejected(choices, message):
    with pytest.raises(UserError, match=message):
        TrainFirst(**{"parameters": [CROSS], "steps": 2, **choices})


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([CROSS, "decodr/.*"], "TrainFirst.parameters: 'decodr/.*' matches no parameter"),
        ([".*"], r"TrainFirst.parameters must leave out some of the parameters that train, got "),
        # It is a constant.
        (["encoder/.*"], "TrainFirst.parameters: 'encoder/.*' matches no parameter"),
    ],
)
def test_patterns_without_effect_are_rejected_before_compilation(
    patterns, message, make_run, tmp_path
):
    first = TrainFirst(parameters=patterns, steps=2)
    run = make_run(tmp_path, trainable=["decoder/.*"], train_first=first)
    with pytest.raises(UserError, match=message):
        small.program_of(run)
