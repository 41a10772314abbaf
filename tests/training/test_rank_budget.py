"""The budget of AdaLoRA against NumPy's float64, and as a part of the state of a run.

`tests/interop/test_adalora_against_peft.py` compares it with peft.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.models.adalora import AdaLoRA
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.lora import LoRA
from t5lite.training.moving_average import MovingAverage
from t5lite.training.rank_budget import RankBudget, mean_rank, no_scores
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.training.faults import NOT_A_NUMBER, MarkedLoss, mark_batches

LAYERS, INPUTS, HEADS, RANK = 3, 6, (2, 4), 5
BUDGET = RankBudget(target_rank=2, total_steps=30, initial_steps=4, final_steps=6, every_steps=3)


def drawn(rng):
    """Random parameters, or gradients, of two maps: one of three layers, and one alone."""

    def of_map(*stacked):
        shapes = {
            "lora_down": (*stacked, INPUTS, RANK),
            "lora_values": (*stacked, RANK),
            "lora_up": (*stacked, RANK, *HEADS),
        }
        return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}

    return {"layers": {"query": of_map(LAYERS)}, "logits_dense": of_map()}


def of_each_map(tree):
    """The factors of each layer of each map in float64: [inputs, r], [r] and [r, outputs]."""
    maps = []
    for one in (tree["layers"]["query"], tree["logits_dense"]):
        values = np.float64(one["lora_values"]).reshape(-1, RANK)
        down = np.float64(one["lora_down"]).reshape(-1, INPUTS, RANK)
        up = np.float64(one["lora_up"]).reshape(-1, RANK, 8)
        maps += zip(down, values, up, strict=True)
    return maps


def budget_of(step):
    """The number of values that stay, of 20."""
    if step <= 4:
        return 20
    left = 1 - (min(step, 24) - 4) / (30 - 6 - 4)
    return int((20 - 8) * left**3 + 8)


def test_values_are_removed_by_the_formulas_in_float64(rng):
    params = drawn(rng)
    scores = no_scores(params)
    update = jax.jit(BUDGET.allocated)
    sensitivity = [[np.zeros_like(x) for x in one] for one in of_each_map(params)]
    uncertainty = [[np.zeros_like(x) for x in one] for one in of_each_map(params)]
    counts = []
    for step in range(1, 31):
        grads = drawn(rng)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        before = of_each_map(params)
        scores, params = update(scores, params, grads, np.int32(step))
        totals = []
        for n, (one, of_loss) in enumerate(zip(before, of_each_map(grads), strict=True)):
            products = []
            for part in range(3):
                now = np.abs(one[part] * of_loss[part])
                if step < 24:
                    mean = 0.85 * sensitivity[n][part] + 0.15 * now
                    spread = 0.85 * uncertainty[n][part] + 0.15 * np.abs(now - mean)
                    sensitivity[n][part], uncertainty[n][part] = mean, spread
                products.append(sensitivity[n][part] * uncertainty[n][part])
            totals.append(products[0].mean(axis=0) + products[1] + products[2].mean(axis=1))
        wanted = np.stack([values for _, values, _ in before])
        removed = 20 - budget_of(step)
        if removed and (step % 3 == 0 or step >= 24):
            threshold = np.sort(np.ravel(totals))[removed - 1]
            wanted = np.where(np.stack(totals) <= threshold, 0.0, wanted)
        got = np.stack([values for _, values, _ in of_each_map(params)])
        np.testing.assert_array_equal(got != 0, wanted != 0, err_msg=f"step {step}")
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
        counts.append(int(np.sum(got != 0)))
    assert counts[:5] == [20] * 5
    assert counts[5] < 20
    assert counts[23:] == [8] * 7
    assert float(mean_rank(params)) == 2.0


def test_the_penalty_is_the_mean_distance_from_orthogonal_factors(rng):
    params = drawn(rng)
    norms = [
        np.linalg.norm(product - np.eye(RANK))
        for down, _, up in of_each_map(params)
        for product in (down.T @ down, up @ up.T)
    ]
    penalty = jax.jit(BUDGET.penalty)(params)
    np.testing.assert_allclose(penalty, 0.5 * np.mean(norms), rtol=1e-5)
    exact = {"map": {"lora_down": jnp.eye(4), "lora_values": jnp.ones(4), "lora_up": jnp.eye(4)}}
    value, grads = jax.jit(jax.value_and_grad(BUDGET.penalty))(exact)
    assert float(value) == 0
    assert all(np.all(x == 0) for x in jax.tree.leaves(grads))


@pytest.mark.proof
def test_a_run_with_a_budget_resumes_exactly_and_skips_bad_steps(
    make_run, of_three_steps, tmp_path, monkeypatch
):
    mark_batches(monkeypatch, {2: NOT_A_NUMBER})
    choices = {
        "model": EncoderDecoder(small.config(adapters=(AdaLoRA(rank=3),))),
        "trainable": [".*/lora_(down|values|up)"],
        # The step of the final choice is bad, so the next one makes it.
        "rank_budget": RankBudget(target_rank=1, total_steps=4, final_steps=2),
        "moving_average": MovingAverage(decay=0.5, ramp_steps=1),
        "loss": MarkedLoss(),
        "initial_checkpoint": str(of_three_steps[1] / "checkpoints" / "3"),
        "checkpoint_every_steps": 1,
        "keep_checkpoints": 4,
    }
    run = make_run(tmp_path / "whole", total_steps=4, **choices)
    whole = jax.device_get(small.train(run))
    small.train(make_run(tmp_path / "killed", total_steps=2, **choices))
    resumed = jax.device_get(small.train(make_run(tmp_path / "killed", total_steps=4, **choices)))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert float(mean_rank(whole.params)) == 1

    checkpoints = StoredCheckpoints(tmp_path / "whole" / "checkpoints")
    shapes = small.program_of(run).state
    first, second, third = (jax.device_get(checkpoints.restore(n, shapes)) for n in (1, 2, 3))
    for part in ("ranks", "average", "params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(first, part), getattr(second, part))
    assert float(mean_rank(second.params)) > 1
    assert float(mean_rank(third.params)) == 1
    # The average is of the adapter alone, and read with the base.
    assert all("/lora_" in name for name in by_name(whole.average))
    read = checkpoints.restore_params(4, shapes.params)
    jax.tree.map(np.testing.assert_array_equal, read, whole.evaluated_params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_budget": None}, "train.rank_budget is needed by AdaLoRA, got none; bind train.ra"),
        (
            {"trainable": [".*/lora_(values|up)"]},
            "train.trainable must select all parameters of AdaLoRA of dec.*, got none for lora_d",
        ),
        (
            {"model": EncoderDecoder(small.config(adapters=(LoRA(),)))},
            "train.rank_budget is for parameters of AdaLoRA that train, got one; bind T5Config",
        ),
        (
            {"rank_budget": RankBudget(target_rank=4, total_steps=4)},
            r"RankBudget.target_rank must be under AdaLoRA.rank \(4\), got 4",
        ),
        (
            {"total_steps": 3},
            r"total_steps must be at most train.total_steps \(3\) plus final_steps \(0\), got 4",
        ),
    ],
)
def test_a_budget_that_does_not_fit_the_run_is_rejected(changes, message, make_run, tmp_path):
    choices = {
        "model": EncoderDecoder(small.config(adapters=(AdaLoRA(rank=4),))),
        "trainable": [".*/lora_.*"],
        "rank_budget": RankBudget(target_rank=2, total_steps=4),
        "total_steps": 4,
    }

    def program():
        run = make_run(tmp_path, **{**choices, **changes})
        return small.program_of(run)

    with pytest.raises(UserError, match=message):
        program()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_rank": 0}, "RankBudget.target_rank must be a whole number >= 1, got 0"),
        ({"sensitivity_decay": None}, r"RankBudget.sensitivity_decay must be in \(0, 1\), got No"),
        ({"every_steps": 0}, "RankBudget.every_steps must be a whole number >= 1, got 0"),
        ({"final_steps": -1}, "RankBudget.final_steps must be a whole number from 0, got -1"),
        ({"sensitivity_decay": 1.0}, r"RankBudget.sensitivity_decay must be in \(0, 1\), got 1.0"),
        ({"orthogonality_weight": -1}, "RankBudget.orthogonality_weight must be at least 0, got"),
        (
            {"initial_steps": 6, "final_steps": 4},
            r"must be over the sum of initial_steps \(6\), .* final_steps \(4\), got 10",
        ),
    ],
)
def test_fields_out_of_range_are_rejected(fields, message):
    with pytest.raises(UserError, match=message):
        RankBudget(**{"total_steps": 10, **fields})
