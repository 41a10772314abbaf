import json

import optax
import pytest

from t5lite.core.errors import UserError
from t5lite.core.run_directory import read_metrics
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.training.early_stopping import EarlyStopping, Improvements
from t5lite.training.moving_average import MovingAverage
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.training.test_vectorized_loop import together

SCORE = "cross_entropy_nats_per_token"
# A rate of 0: no evaluation after the first is better.
STILL = make_optimizer(optax.sgd, name="sgd", learning_rate=0.0)
CHOICES = {
    "optimizer": STILL,
    "eval_every_steps": 1,
    "keep_lowest": SCORE,
    "early_stopping": EarlyStopping(evaluations=3),
}
ENDED = f"early: {SCORE} has not improved in 3 evaluations since step 0"


def result(folder):
    return json.loads((folder / "result.json").read_text())


def steps_of(folder):
    return [m["step"] for m in read_metrics(folder) if m["split"] == "validation"]


def test_improvements_are_counted_from_the_best_score():
    seen = Improvements(EarlyStopping(evaluations=2, min_improvement=0.5), "score", None)
    ended = []
    for step, rank in enumerate([1.0, 1.4, 1.6, None, 2.0]):
        seen.evaluated(step, rank)
        ended.append(seen.ended)
    # 1.4 is better by less than 0.5, and so is 2.0; a score that is not finite is no improvement.
    assert ended[:4] == [None] * 4
    assert ended[4] == "early: score has not improved in 2 evaluations since step 2"
    again = Improvements(EarlyStopping(evaluations=3), "score", seen.state())
    assert again.ended is None
    again.evaluated(5, 1.6)
    assert again.ended == "early: score has not improved in 3 evaluations since step 2"


@pytest.mark.proof
def test_a_run_ends_when_its_score_does_not_improve(make_run, tmp_path, capsys):
    state = small.train(make_run(tmp_path, **CHOICES))
    assert int(state.step) == 3
    assert steps_of(tmp_path) == [0, 1, 2, 3]
    assert (result(tmp_path)["step"], result(tmp_path)["ended"]) == (3, ENDED)
    assert result(tmp_path)["scores"]["validation"]["step"] == 3
    assert StoredCheckpoints(tmp_path / "checkpoints").steps()[-1] == 3
    assert f"the run ends {ENDED}" in capsys.readouterr().out
    # Started again, it has nothing to train; with more patience it trains on.
    small.train(make_run(tmp_path, **CHOICES))
    assert f"nothing to train: {ENDED}" in capsys.readouterr().out
    assert result(tmp_path)["ended"] == ENDED
    patient = {**CHOICES, "early_stopping": EarlyStopping(evaluations=9)}
    small.train(make_run(tmp_path, **patient, total_steps=5))
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert (result(tmp_path)["step"], result(tmp_path)["ended"]) == (5, "all steps")


@pytest.mark.proof
def test_a_run_that_is_resumed_ends_at_the_same_step(make_run, tmp_path):
    for steps in (1, 2, 6):
        small.train(make_run(tmp_path, **CHOICES, total_steps=steps))
    assert (result(tmp_path)["step"], result(tmp_path)["ended"]) == (3, ENDED)


@pytest.mark.proof
def test_trials_of_a_vectorized_sweep_end_early_each_by_itself(make_run, tmp_path):
    average = MovingAverage(decay=0.5)
    moving = {**CHOICES, "optimizer": make_optimizer(optax.sgd, name="sgd", learning_rate=0.5)}
    runs = [
        make_run(tmp_path / "still", moving_average=average, **CHOICES),
        make_run(tmp_path / "moving", moving_average=average, **moving),
        # Takes the slot of the trial that ended early.
        make_run(tmp_path / "next", moving_average=MovingAverage(decay=0.2), **CHOICES, seed=1),
    ]
    assert together(runs, 2) == dict.fromkeys(("still", "moving", "next"), "finished")
    for name in ("still", "next"):
        assert (result(tmp_path / name)["step"], result(tmp_path / name)["ended"]) == (3, ENDED)
    assert result(tmp_path / "moving")["ended"] == "all steps"
    small.train(make_run(tmp_path / "alone", moving_average=average, **moving))
    for folder in ("moving", "alone"):
        assert steps_of(tmp_path / folder) == list(range(7))
    own, wanted = (
        [m[SCORE] for m in read_metrics(tmp_path / f) if m["split"] == "validation"]
        for f in ("moving", "alone")
    )
    assert own == pytest.approx(wanted, rel=2e-5)
    # Nothing is left for trials that ended.
    assert together(runs[:1], 2) == {"still": "finished"}
    assert result(tmp_path / "still")["ended"] == ENDED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_lowest": None}, "train.early_stopping needs train.keep_highest or train.keep_low"),
        ({"eval_every_steps": None}, "train.eval_every_steps must be bound with train.early_stop"),
    ],
)
def test_early_stopping_needs_a_score(changes, message, make_run, tmp_path):
    with pytest.raises(UserError, match=message):
        make_run(tmp_path, **{**CHOICES, **changes})


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"evaluations": 0}, "EarlyStopping.evaluations must be a whole number from 1, got 0"),
        ({"min_improvement": -1.0}, "EarlyStopping.min_improvement must be at least 0, got -1.0"),
    ],
)
def test_numbers_out_of_range_are_rejected(choices, message):
    with pytest.raises(UserError, match=message):
        EarlyStopping(**choices)
