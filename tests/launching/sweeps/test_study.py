"""Trials in their one store: planned once, resumed, recorded once."""

import multiprocessing

import pytest
from optuna.trial import TrialState

from t5lite.core.errors import UserError
from t5lite.launching.sweeps.settings import count_distinct, planned_settings
from t5lite.launching.sweeps.space import parse_space
from t5lite.launching.sweeps.study import Study, pruner_of

SPACE = parse_space({"a": "[1, 2, 3]", "b": "log(0.1, 10.0)"})
SETTINGS = planned_settings("random", SPACE, trials=8)


def test_an_interrupted_plan_is_completed(tmp_path):
    Study(tmp_path, SPACE).plan(SETTINGS[:3])
    study = Study(tmp_path, SPACE)
    study.plan(SETTINGS)
    study.plan(SETTINGS)
    assert [study.take(n).params for n in range(8)] == SETTINGS


def test_samples_of_tpe_do_not_depend_on_the_process(tmp_path):
    for name in ("again", "other"):
        (tmp_path / name).mkdir()
    drawn = [Study(tmp_path, SPACE, seed=3).take(number).params for number in range(6)]
    assert len({params["b"] for params in drawn}) == 6
    again = Study(tmp_path / "again", SPACE, seed=3)
    assert [again.take(number).params for number in range(6)] == drawn
    other = Study(tmp_path / "other", SPACE, seed=4)
    assert other.take(0).params != drawn[0]


def test_tpe_samples_every_setting_once_and_then_the_space_is_exhausted(tmp_path):
    space = parse_space({"a": "[1, 2, 3]", "train.seed": "range(4)"})
    study = Study(tmp_path, space)
    settings = []
    for number in range(12):
        settings.append(study.take(number).params)
        study.tell(number, "complete", float(settings[-1]["a"]))
    assert count_distinct(settings) == 12
    with pytest.raises(UserError, match="the search space is exhausted: it has 12 settings"):
        study.take(12)


def test_a_line_that_was_cut_short_is_removed(tmp_path):
    study = Study(tmp_path, SPACE)
    study.plan(SETTINGS)
    study.tell(study.take(0).number, "complete", 1.0)
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    for cut in range(len(whole) - 30, len(whole)):
        journal.write_bytes(whole[:cut])
        study = Study(tmp_path, SPACE)
        study.tell(study.take(0).number if study.take(0) else 0, "complete", 1.0)
        assert Study(tmp_path, SPACE).trials()[0].value == 1.0
        assert len(Study(tmp_path, SPACE).trials()) == 8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"op_code":4', b'"op_code":40', ":2: the field 'op_code' must be the code of an operat"),
        (
            b'"study_name":"sweep"',
            b'"study_name":"sweeq"',
            ":1: the field 'study_name' must be '",
        ),
        (b'"trial_id":0', b'"trial_id":9', ": trial 9 does not exist yet"),
        (
            b'"study_id":0',
            b'"study_id":1',
            ":2: the field 'study_id' must be 0, the only study",
        ),
        (b'"state":4', b'"state":7', ":2: the field 'state' must be the state of a trial, got 7"),
        (b'"b":', b'"c":', ": the setting of trial 0 must be one of the search space"),
        (b'\\"log\\": true', b'\\"log\\": false', ": the setting of trial 0 must be one of"),
        (b"{", b"5\n{", ":1: must be a JSON object, got 5"),
        (b"{", b"\xff{", ":1: 'utf-8' codec can't decode byte 0xff"),
        (b'"{\\"name\\"', b'"{\\"nome\\"', "KeyError: 'type'"),
    ],
)
def test_a_damaged_journal_is_one_line_that_names_the_line(old, new, message, tmp_path):
    study = Study(tmp_path, SPACE)
    study.plan(SETTINGS[:2])
    study.tell(study.take(0).number, "complete", 1.0)
    path = tmp_path / "study.journal"
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new))
    with pytest.raises(UserError) as error:
        Study(tmp_path, SPACE)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert str(error.value).isprintable()


def test_the_journal_of_another_search_space_is_rejected(tmp_path):
    Study(tmp_path, SPACE).plan(SETTINGS[:1])
    with pytest.raises(UserError, match="the setting of trial 0 must be one of the search space"):
        Study(tmp_path, parse_space({"a": "[1, 2, 3]", "b": "log(100.0, 200.0)"}))


def test_a_trial_whose_process_was_killed_keeps_its_intermediate_values(tmp_path):
    study = Study(tmp_path, SPACE)
    study.plan(SETTINGS)
    study.take(5)
    study.report(5, 10, 3.0)
    # The process was killed.
    study = Study(tmp_path, SPACE)
    assert study.take(5).params == SETTINGS[5]
    study.report(5, 10, 99.0)
    study.report(5, 20, 2.0)
    study.tell(5, "complete", 2.0)
    study.tell(5, "failed")
    frozen = Study(tmp_path, SPACE).trials()[5]
    assert (frozen.state, frozen.value) == (TrialState.COMPLETE, 2.0)
    assert frozen.intermediate_values == {10: 3.0, 20: 2.0}
    assert study.take(5) is None
    assert [t.state for t in study.trials()].count(TrialState.WAITING) == 7


def test_the_best_is_the_lowest_or_the_highest_complete_trial(tmp_path):
    for maximize, best in ((False, 1), (True, 0)):
        folder = tmp_path / str(maximize)
        folder.mkdir()
        study = Study(folder, SPACE, maximize=maximize)
        assert study.best() is None
        study.plan(SETTINGS)
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
    study.plan(SETTINGS)
    pruned = []
    for number in range(6):
        study.take(number)
        pruned.append(any(study.report(number, step, number + 1 / step) for step in (10, 30, 90)))
    assert not pruned[0]
    assert all(pruned[1:])
