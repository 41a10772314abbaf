"""Importance of bindings, from complete trials."""

import itertools

from t5lite.launching.sweeps.importance import importance_of


def trials(rates, seeds, value):
    return [
        ({"rate": rate, "train.seed": seed}, value(rate, seed))
        for rate, seed in itertools.product(rates, range(seeds))
    ]


def test_too_few_settings_have_no_importance():
    found = importance_of(trials([0.1, 0.2], 2, lambda rate, seed: rate + seed), maximize=False)
    assert not found.shares
    assert found.reason.startswith("too few settings: importance needs 10")
    assert found.reason.endswith("got 2")


def test_seeds_are_noise_and_have_no_importance():
    rates = [10 ** (-i / 3) for i in range(12)]
    found = importance_of(trials(rates, 2, lambda rate, seed: rate + 0.02 * seed), maximize=False)
    assert found.shares == {"rate": 1.0}
    only_seeds = importance_of(trials([0.1], 12, lambda rate, seed: float(seed)), maximize=False)
    assert only_seeds.reason == "nothing but seeds differs between the complete trials"


def test_the_binding_that_moves_the_objective_is_the_important_one():
    values = [
        ({"rate": rate, "layers": layers}, abs(rate - 4) + 0.01 * (layers == 3))
        for rate, layers in itertools.product(range(1, 9), (2, 3, 4))
    ]
    for maximize in (False, True):
        found = importance_of(values, maximize=maximize)
        assert found.shares["rate"] > 0.8 > 0.2 > found.shares["layers"]
