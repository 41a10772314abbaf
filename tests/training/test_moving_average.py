"""The moving average of a run against NumPy's float64, saved, resumed, evaluated and read."""

import itertools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.core.run_directory import read_metrics
from t5lite.training.lazy_checkpoints import stored_params
from t5lite.training.moving_average import MovingAverage
from t5lite.training.one_program import check_one_program
from t5lite.training.partial_restore import restore_by_rules
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.training.faults import NOT_A_NUMBER, MarkedLoss, mark_batches

# The decoder trains; the average is of what trains.
TRAINED = ["decoder/.*"]
DECAY = 0.6
RAMP = 3
CHOICES = {
    "trainable": TRAINED,
    "moving_average": MovingAverage(decay=DECAY, ramp_steps=RAMP),
    "checkpoint_every_steps": 1,
}
STEPS = 3


@pytest.fixture(scope="module")
def states(text_file, data_dir, tmp_path_factory):
    """The state before and after each step, of runs that each resume the one before."""
    folder = tmp_path_factory.mktemp("average")
    runs = [small.run(text_file, data_dir, folder, total_steps=n, **CHOICES) for n in (1, 2, 3)]
    program = small.program_of(runs[0])
    initial = jax.device_get(program.init(program.hyper))
    return [initial, *(jax.device_get(small.train(run)) for run in runs)], folder


def named_average(state):
    return flax.traverse_util.flatten_dict(state.average, sep="/")


def test_updates_equal_the_formula_in_float64(rng):
    rules = MovingAverage(decay=0.8, ramp_steps=4)
    average = {"x": rng.normal(size=5).astype(np.float32)}
    update = jax.jit(rules.updated)
    expected = average["x"].astype(np.float64)
    for step in range(20):
        params = {"x": rng.normal(size=5).astype(np.float32)}
        average = update(average, params, np.int32(step))
        decay = min(0.8, (1 + step) / (4 + step))
        expected = decay * expected + (1 - decay) * params["x"]
    np.testing.assert_allclose(average["x"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.proof
def test_the_average_of_a_run_equals_its_formula(states):
    steps, _ = states
    expected = {name: x.astype(np.float64) for name, x in named_average(steps[0]).items()}
    assert expected.keys() == {n for n in by_name(steps[0].params) if n.startswith("decoder/")}
    for number, (before, after) in enumerate(itertools.pairwise(steps)):
        decay = min(DECAY, (1 + number) / (RAMP + number))
        params = by_name(after.params)
        for name, mean in expected.items():
            expected[name] = decay * mean + (1 - decay) * params[name].astype(np.float64)
            np.testing.assert_allclose(
                named_average(after)[name], expected[name], rtol=1e-6, atol=1e-7
            )
        assert any(np.any(a != named_average(before)[n]) for n, a in expected.items())


@pytest.mark.proof
def test_a_run_with_an_average_resumes_exactly(states, make_run, tmp_path):
    steps, _ = states
    whole = small.train(make_run(tmp_path, total_steps=STEPS, **CHOICES))
    jax.tree.map(np.testing.assert_array_equal, steps[-1], jax.device_get(whole))


@pytest.mark.proof
def test_the_average_is_evaluated_and_read_unless_the_trained_values_are_asked_for(
    states, make_run
):
    steps, folder = states
    last = steps[-1]
    run = make_run(folder, total_steps=STEPS, **CHOICES)
    evaluate = small.evaluate_of(run)
    recorded = [m for m in read_metrics(folder) if m["split"] == "validation"][-1]
    assert recorded["loss_nats_per_token"] == evaluate(last.evaluated_params)["loss_nats_per_token"]
    assert recorded["loss_nats_per_token"] != evaluate(last.params)["loss_nats_per_token"]
    checkpoints = StoredCheckpoints(folder / "checkpoints")
    shapes = small.program_of(run).state.params
    wanted = {None: last.evaluated_params, "average": last.evaluated_params, "trained": last.params}
    for which, expected in wanted.items():
        read = checkpoints.restore_params(STEPS, shapes, which)
        jax.tree.map(np.testing.assert_array_equal, read, expected)
        for name, array in stored_params(checkpoints, STEPS, which).items():
            np.testing.assert_array_equal(array.load(), by_name(expected)[name])
    fresh = jax.tree.map(jnp.asarray, last.params)
    started, _ = restore_by_rules(checkpoints, STEPS, fresh, [])
    jax.tree.map(np.testing.assert_array_equal, started, last.evaluated_params)


@pytest.mark.proof
def test_a_new_run_starts_its_average_from_the_initial_checkpoint(states, make_run, tmp_path):
    steps, folder = states
    choices = {"initial_checkpoint": str(folder), "total_steps": 0}
    new = small.train(make_run(tmp_path, **CHOICES, **choices))
    jax.tree.map(np.testing.assert_array_equal, new.params, steps[-1].evaluated_params)
    jax.tree.map(np.testing.assert_array_equal, new.average, steps[-1].average)


@pytest.mark.proof
def test_a_checkpoint_with_an_average_is_resumed_with_one_only(
    states, make_run, of_three_steps, tmp_path
):
    _, folder = states
    without = {**CHOICES, "moving_average": None}
    with pytest.raises(UserError, match="must be as it was, = @MovingAverage.*holds a moving av"):
        small.train(make_run(folder, **without))
    source = str(of_three_steps[1])
    choices = {"initial_checkpoint": source, "restore_optimizer": True}
    with pytest.raises(UserError, match="must be as it was, = None: .* holds no moving average"):
        small.train(make_run(tmp_path, moving_average=MovingAverage(), **choices))
    checkpoints = StoredCheckpoints(of_three_steps[1] / "checkpoints")
    with pytest.raises(UserError, match="has no moving average, which --parameters=average names"):
        checkpoints.param_paths(3, "average")


def test_the_decay_is_an_input_of_the_program(make_run, tmp_path):
    first, other = (
        make_run(tmp_path, moving_average=MovingAverage(decay=decay)) for decay in (0.9, 0.99)
    )
    check_one_program(first, other, dropout=False)
    with pytest.raises(UserError, match="moving_average or rank_budget"):
        check_one_program(first, make_run(tmp_path), dropout=False)


@pytest.mark.proof
def test_a_bad_step_does_not_change_the_average(make_run, tmp_path, monkeypatch):
    mark_batches(monkeypatch, {2: NOT_A_NUMBER})
    choices = {**CHOICES, "loss": MarkedLoss(), "microbatches": 2, "param_dtype": "bfloat16"}
    # Apart: an attempt whose every step is bad would return, and skip the batch.
    states = [small.train(make_run(tmp_path / str(n), total_steps=n, **choices)) for n in (1, 2)]
    first, second = jax.device_get(states)
    jax.tree.map(np.testing.assert_array_equal, first.average, second.average)
    assert {x.dtype.name for x in named_average(second).values()} == {"float32"}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"decay": 1.0}, r"MovingAverage.decay must be in \[0, 1\), got 1.0"),
        ({"ramp_steps": 0}, "MovingAverage.ramp_steps must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_rejected(choices, message):
    with pytest.raises(UserError, match=message):
        MovingAverage(**choices)
