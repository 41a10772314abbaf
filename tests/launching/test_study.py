"""Trials in their one store: planned once, taken up again, told once."""

import multiprocessing

import pytest
from optuna.trial import TrialState

from t5lite.core.errors import UserError
from t5lite.launching.sweeps.space import parse_space
from t5lite.launching.sweeps.study import Study, planned, pruner_of

SPACE = parse_space({"a": "[1, 2, 3]", "b": "log(0.1, 10.0)"})


def rows(method, trials=8, seed=0):
    return planned(method, SPACE, trials=trials, listed=[], seed=seed)


@pytest.mark.parametrize("method", ["random", "quasi"])
def test_what_is_drawn_depends_on_the_seed_alone(method):
    assert rows(method) == rows(method)
    assert rows(method) != rows(method, seed=1)
    # More of them begin alike.
    assert rows(method, trials=12)[:8] == rows(method)
    assert all(row["a"] in (1, 2, 3) and 0.1 <= row["b"] <= 10 for row in rows(method, 100))


def test_quasi_random_values_are_spread_more_evenly():
    values = sorted(row["b"] for row in rows("quasi", 16))
    thirds = [
        sum(0.1 * 10 ** (2 * i / 4) <= v < 0.1 * 10 ** (2 * (i + 1) / 4) for v in values)
        for i in range(4)
    ]
    assert thirds == [4, 4, 4, 4]


def test_a_plan_that_was_cut_off_is_made_whole(tmp_path):
    plan = rows("random")
    Study(tmp_path, SPACE).plan(plan[:3])
    study = Study(tmp_path, SPACE)
    study.plan(plan)
    study.plan(plan)
    assert [study.take(n).params for n in range(8)] == plan


def test_what_is_drawn_one_by_one_differs_whoever_draws(tmp_path):
    for name in ("again", "other"):
        (tmp_path / name).mkdir()
    drawn = [Study(tmp_path, SPACE, seed=3).take(number).params for number in range(6)]
    assert len({params["b"] for params in drawn}) == 6
    again = Study(tmp_path / "again", SPACE, seed=3)
    assert [again.take(number).params for number in range(6)] == drawn
    other = Study(tmp_path / "other", SPACE, seed=4)
    assert other.take(0).params != drawn[0]


def test_a_line_that_was_cut_short_is_taken_away(tmp_path):
    study = Study(tmp_path, SPACE)
    study.plan(rows("random"))
    study.tell(study.take(0).number, "complete", 1.0)
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    for cut in range(len(whole) - 30, len(whole)):
        journal.write_bytes(whole[:cut])
        study = Study(tmp_path, SPACE)
        study.tell(study.take(0).number if study.take(0) else 0, "complete", 1.0)
        assert Study(tmp_path, SPACE).trials()[0].value == 1.0
        assert len(Study(tmp_path, SPACE).trials()) == 8


def test_a_trial_that_was_begun_is_taken_up_with_what_it_told(tmp_path):
    study = Study(tmp_path, SPACE)
    study.plan(rows("random"))
    study.report(study.take(5), 10, 3.0)
    # Whoever had it was killed.
    study = Study(tmp_path, SPACE)
    trial = study.take(5)
    assert trial.params == rows("random")[5]
    study.report(trial, 10, 99.0)
    study.report(trial, 20, 2.0)
    study.tell(5, "complete", 2.0)
    study.tell(5, "failed")
    frozen = Study(tmp_path, SPACE).trials()[5]
    assert (frozen.state, frozen.value) == (TrialState.COMPLETE, 2.0)
    assert frozen.intermediate_values == {10: 3.0, 20: 2.0}
    assert study.take(5) is None
    assert [t.state for t in study.trials()].count(TrialState.WAITING) == 7


def test_the_best_is_the_least_or_the_greatest_of_complete_ones(tmp_path):
    for maximize, best in ((False, 1), (True, 0)):
        folder = tmp_path / str(maximize)
        folder.mkdir()
        study = Study(folder, SPACE, maximize=maximize)
        assert study.best() is None
        study.plan(rows("random"))
        for number, value in enumerate([3.0, 1.0, 2.0]):
            study.take(number)
            study.tell(number, "complete", value)
        study.take(3)
        study.tell(3, "pruned")
        assert study.best().number == best


def _take(folder, number):
    study = Study(folder, SPACE, seed=3)
    study.take(number)


def test_processes_that_take_trials_at_once_take_each_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_take, args=(tmp_path, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    trials = Study(tmp_path, SPACE, seed=3).trials()
    assert [t.number for t in trials] == [0, 1, 2, 3]
    assert all(t.state == TrialState.RUNNING and t.params.keys() == {"a", "b"} for t in trials)


def test_bad_trials_are_pruned(tmp_path):
    pruner = pruner_of("asha", first_step=10, last_step=100)
    study = Study(tmp_path, SPACE, pruner=pruner)
    study.plan(rows("random"))
    pruned = [
        any(study.report(study.take(n), step, n + 1 / step) for step in (10, 30, 90))
        for n in range(6)
    ]
    assert not pruned[0]
    assert all(pruned[1:])


def test_numbers_of_trials_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="--method=tpe needs --trials"):
        planned("tpe", SPACE, trials=None, listed=[], seed=0)
    grid = parse_space({"a": "[1, 2, 3]"})
    with pytest.raises(UserError, match="--trials of this grid is 3, got 4"):
        planned("grid", grid, trials=4, listed=[], seed=0)
