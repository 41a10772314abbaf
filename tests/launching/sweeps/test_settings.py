"""Settings that methods plan: determined by the seed, and each one once."""

import pytest

from t5lite.core.errors import UserError
from t5lite.launching.sweeps.settings import count_distinct, planned_settings
from t5lite.launching.sweeps.space import parse_space

SPACE = parse_space({"a": "[1, 2, 3]", "b": "log(0.1, 10.0)"})
FINITE = parse_space({"a": "[1, 2, 3]", "b": "uniform(1, 4)"})


def planned(method, trials=8, seed=0, space=SPACE, **options):
    return planned_settings(method, space, trials=trials, seed=seed, **options)


@pytest.mark.parametrize("method", ["random", "quasi"])
def test_samples_depend_on_the_seed_alone(method):
    assert planned(method) == planned(method)
    assert planned(method) != planned(method, seed=1)
    # More of them begin with the same ones.
    assert planned(method, trials=12)[:8] == planned(method)
    assert all(row["a"] in (1, 2, 3) and 0.1 <= row["b"] <= 10 for row in planned(method, 100))


def test_quasi_random_samples_are_spread_more_evenly():
    values = sorted(row["b"] for row in planned("quasi", 16))
    quarters = [
        sum(0.1 * 10 ** (2 * i / 4) <= v < 0.1 * 10 ** (2 * (i + 1) / 4) for v in values)
        for i in range(4)
    ]
    assert quarters == [4, 4, 4, 4]


@pytest.mark.parametrize("method", ["random", "quasi"])
@pytest.mark.parametrize("trials", [1, 5, 11, 12, 30])
def test_no_setting_is_planned_twice(method, trials):
    settings = planned(method, trials, space=FINITE)
    assert count_distinct(settings) == len(settings) == min(trials, 12)
    # The first ones do not depend on how many follow.
    assert settings[:3] == planned(method, 3, space=FINITE)[: len(settings)]


def test_repeated_settings_are_planned_if_requested():
    settings = planned("random", 30, space=FINITE, allow_repeats=True)
    assert len(settings) == 30
    assert count_distinct(settings) <= 12


def test_a_list_that_repeats_a_setting_is_rejected_unless_requested():
    listed = [{"a": 1}, {"a": 2}, {"a": 1}]
    with pytest.raises(UserError, match="sweep.listed must hold different settings, got 3 of"):
        planned("list", listed=listed)
    assert planned("list", listed=listed, allow_repeats=True) == listed


def test_a_number_of_trials_that_does_not_fit_is_rejected():
    with pytest.raises(UserError, match="--method=tpe needs --trials"):
        planned("tpe", trials=None)
    space = parse_space({"a": "[1, 2, 3]"})
    with pytest.raises(UserError, match="--trials of this grid must be 3, got 4"):
        planned("grid", trials=4, space=space)
