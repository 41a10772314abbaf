"""Steps that leave the state as it was, with faults in batches and optimizers."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.core.numbers import as_inputs
from t5lite.core.run_directory import read_metrics
from t5lite.models.architectures import EncoderDecoder
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.parallel.mesh import Mesh
from t5lite.training.bad_steps import BadSteps, after_step, no_recent_steps, norm_bound
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.state import abstract_state, initial_state
from t5lite.training.step import make_train_step
from tests import small
from tests.proofs import proofs_but
from tests.training.faults import NOT_A_NUMBER, SPIKE, MarkedLoss, mark_batches, train_alike

# The bound of gradient norms holds after three good steps, so that tests are short.
SOON = BadSteps(recent_steps=3, max_norm_deviations=0.0)


def assert_same(some, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(some), jax.device_get(other))


def train_losses(run):
    lines = read_metrics(pathlib.Path(run.model_dir))
    return {m["step"]: m["loss_nats_per_token"] for m in lines if m["split"] == "train"}


def remember(values, rules, **options):
    recent = no_recent_steps()
    for value in values:
        number = jnp.float32(value)
        good = jnp.bool_(True)
        recent = after_step(rules, recent, is_good=good, loss=number, norm=number, **options)
    return recent


def test_the_bound_follows_the_mean_and_the_spread_of_recent_logarithms(rng):
    rules = as_inputs(BadSteps(recent_steps=50, max_norm_ratio=3.0, max_norm_deviations=4.0))
    logs = rng.normal(0.5, 1.0, 2000)
    recent = remember(np.exp(logs), rules)
    # Exponential means over 50 of 2000 numbers are of about 100 independent ones.
    assert float(recent.log_norm) == pytest.approx(0.5, abs=0.5)
    assert float(recent.log_norm_variance) == pytest.approx(1.0, abs=0.6)
    bound = float(recent.log_norm) + 4.0 * np.sqrt(float(recent.log_norm_variance))
    assert float(norm_bound(rules, recent)) == pytest.approx(np.exp(bound), rel=1e-5)
    steady = remember([2.0] * 60, rules)
    assert float(norm_bound(rules, steady)) == pytest.approx(6.0, rel=1e-4)


def test_a_gradient_of_zero_is_not_remembered():
    rules = as_inputs(BadSteps(recent_steps=3))
    recent = remember([2.0, 2.0, 2.0, 0.0], rules)
    assert float(recent.log_norm) == pytest.approx(np.log(2.0))


@pytest.fixture(scope="module")
def step_once():
    """Takes one step of SGD or AdamW on a batch, from a state changed as the caller likes."""
    model = EncoderDecoder(small.config())
    compiled = {}

    def go(*, rules=SOON, change=lambda state: state, mark=None, factory=optax.adamw, rate=1e-2):
        numbers = as_inputs(
            Hyperparameters(
                optimizer=make_optimizer(factory, name="own", learning_rate=rate),
                loss=MarkedLoss(),
                seed=np.int32(0),
                dropout_rate=None,
                max_gradient_norm=1.0,
                bad_steps=rules,
            )
        )
        # Rules and rates are inputs of the program.
        if (key := (factory, rules is None)) not in compiled:
            axes = abstract_state(model, numbers, Mesh().make(jax.devices()[:1]))[1]
            init = jax.jit(lambda h: initial_state(model, h, axes))
            compiled[key] = init, jax.jit(make_train_step(model, axes))
        init, step = compiled[key]
        batch = jax.tree.map(jnp.asarray, small.batch(0))
        if mark is not None:
            targets = batch["decoder_target_tokens"].at[0, 0].set(mark)
            batch["decoder_target_tokens"] = targets
        state = change(init(numbers))
        after, sums = step(numbers, state, batch)
        return state, after, sums

    return go


def with_norms(state):
    """A state that has seen enough steps with gradient norms of 1."""
    seen = dataclasses.replace(state.recent, good_steps=jnp.int32(9), loss=jnp.float32(2.0))
    return dataclasses.replace(state, recent=seen)


def returns_nan(learning_rate):
    """An optimizer whose updates are not a number where the gradient is finite."""
    return optax.chain(optax.adamw(learning_rate), optax.scale(float("nan")))


FAULTS = {
    "loss": {"mark": NOT_A_NUMBER},
    "norm": {"mark": SPIKE, "change": with_norms},
    "update": {"factory": returns_nan},
}


@pytest.mark.parametrize("fault", proofs_but(("loss",), FAULTS))
def test_a_bad_step_changes_only_the_counts_of_steps(fault, step_once):
    state, after, sums = step_once(**FAULTS[fault])
    assert_same((after.params, after.opt_state), (state.params, state.opt_state))
    counted = dataclasses.replace(state.recent, bad_in_a_row=state.recent.bad_in_a_row + 1)
    assert_same(after.recent, counted)
    assert int(after.step) == 1
    assert (float(sums["bad_steps"]), float(sums["loss"]), float(sums["tokens"])) == (1, 0, 0)
    assert float(sums["input_tokens"]) == 0


def test_a_spike_is_good_before_enough_steps_and_under_the_bound(step_once):
    generous = dataclasses.replace(SOON, max_norm_ratio=1e9)
    for choices in ({}, {"change": with_norms, "rules": generous}):
        state, after, sums = step_once(mark=SPIKE, **choices)
        assert float(sums["bad_steps"]) == 0
        assert int(after.recent.good_steps) == int(state.recent.good_steps) + 1


@pytest.mark.proof
def test_no_state_of_recent_steps_exists_without_bad_steps(step_once):
    state, after, sums = step_once(rules=None)
    assert by_name(after).keys() == by_name(state).keys()
    assert not [name for name in by_name(after) if name.startswith("recent")]
    assert "bad_steps" not in sums


@pytest.mark.proof
def test_a_run_without_bad_steps_is_bitwise_the_run_without_the_check(make_run, tmp_path):
    checked = make_run(tmp_path / "on", loss=MarkedLoss(), bad_steps=SOON)
    plain = make_run(tmp_path / "off", loss=MarkedLoss(), bad_steps=None)
    on = train_alike(checked)
    off = train_alike(plain)
    assert_same((on.params, on.opt_state), (off.params, off.opt_state))
    assert train_losses(checked) == train_losses(plain)
    lines = read_metrics(tmp_path / "on")
    assert [m["bad_steps"] for m in lines if m["split"] == "train"] == [0.0] * 6


@pytest.mark.proof
def test_a_bad_batch_is_skipped_counted_and_recorded(make_run, tmp_path, monkeypatch, capsys):
    mark_batches(monkeypatch, {4: NOT_A_NUMBER, 5: SPIKE}, of=("bad",))
    choices = {"loss": MarkedLoss(), "bad_steps": SOON, "total_steps": 7}
    run = make_run(tmp_path / "bad", **choices, log_every_steps=7, checkpoint_every_steps=7)
    train_alike(run)
    (line,) = [m for m in read_metrics(tmp_path / "bad") if m["split"] == "train"]
    assert line["bad_steps"] == 2
    good = make_run(tmp_path / "good", **choices, skip_batches=[(4, 5)])
    train_alike(dataclasses.replace(good, total_steps=3))
    records = list(map(json.loads, (tmp_path / "bad" / "bad_steps.jsonl").read_text().splitlines()))
    assert [(r["step"], r["batch"]) for r in records] == [(4, 4), (5, 5)]
    assert records[0]["loss_nats_per_token"] is None
    assert records[1]["gradient_norm"] > records[1]["norm_bound"] > 0
    assert "step 4 is bad and changes no parameters: loss nan" in capsys.readouterr().out
    # The cursors are those that the batch was made from: of step 3 in an undisturbed run.
    about = tmp_path / "good" / "checkpoints" / "3" / "about" / "metadata"
    assert records[0]["rows"] == json.loads(about.read_text())["data"]["rows"]


@pytest.mark.proof
def test_a_window_of_bad_steps_only_has_no_loss(make_run, tmp_path, monkeypatch):
    mark_batches(monkeypatch, {2: NOT_A_NUMBER})
    run = make_run(tmp_path, loss=MarkedLoss(), total_steps=3)
    train_alike(run)
    line = next(m for m in read_metrics(tmp_path) if m["step"] == 2 and m["split"] == "train")
    assert (line["loss_nats_per_token"], line["bad_steps"], line["target_tokens"]) == (None, 1, 0)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("recent_steps", 0, "a whole number from 1"),
        ("max_in_a_row", 2.5, "a whole number from 1"),
        ("max_norm_ratio", 0.5, "at least 1"),
        ("max_loss_rise", 0.0, "over 0"),
        ("max_returns", -1, "a whole number from 0"),
    ],
)
def test_numbers_out_of_range_are_rejected(name, value, rule):
    with pytest.raises(UserError, match=rf"BadSteps\.{name} must be {rule}, got {value}"):
        BadSteps(**{name: value})
