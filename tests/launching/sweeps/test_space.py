"""The search space of a sweep."""

import itertools
import math

import pytest

from t5lite.core.errors import UserError
from t5lite.launching.sweeps.space import (
    Range,
    ValueList,
    check_no_repeats,
    grid_settings,
    parse_space,
)


def parse(text):
    return parse_space({"x": text})["x"]


def test_lists_and_ranges_are_parsed():
    assert parse("[0.0, 'a', True, None]") == ValueList((0.0, "a", True, None))
    assert parse("range(3)") == ValueList((0, 1, 2))
    assert parse("range(10, 4, -3)") == ValueList((10, 7))
    assert parse("uniform(0, 0.5)") == Range(0, 0.5)
    assert parse("log(1e-4, 1e-2, 3)") == Range(1e-4, 1e-2, True, 3)


def test_grids_are_all_combinations_at_equal_distances_or_ratios():
    space = parse_space({"a": "log(1e-4, 1e-2, 5)", "b": "['x', 'y']"})
    settings = grid_settings(space)
    assert [setting["b"] for setting in settings] == ["x", "y"] * 5
    rates = [setting["a"] for setting in settings[::2]]
    assert rates[0] == 1e-4
    assert rates[-1] == 1e-2
    assert rates[2] == 1e-3
    assert all(math.isclose(b / a, 10**0.5, rel_tol=1e-9) for a, b in itertools.pairwise(rates))
    assert parse("uniform(1, 4, 4)").grid() == [1, 2, 3, 4]
    assert parse("log(1, 100, 3)").grid() == [1, 10, 100]


def test_samples_are_within_a_range_and_reach_both_ends():
    fractions = [i / 1000 for i in range(1000)]
    assert {parse("uniform(1, 3)").at(f) for f in fractions} == {1, 2, 3}
    assert {parse("['a', 'b']").at(f) for f in fractions} == {"a", "b"}
    rates = [parse("log(1e-4, 1e-2)").at(f) for f in fractions]
    assert rates[0] == 1e-4
    assert rates[500] == 1e-3
    assert max(rates) <= 1e-2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the list of values of x is empty, got []"),
        ("range(3, 3)", "the list of values of x is empty, got range(3, 3)"),
        ("lgo(1, 2)", "got 'lgo'; did you mean 'log'?"),
        ("log(0.0, 1.0)", "the bounds of x must be over 0 for a log range, got log(0.0, 1.0)"),
        ("uniform(2.0, 1.0)", "the range of x is empty, got uniform(2.0, 1.0)"),
        ("log(1.0, 2.0, 1)", "x must have 2 to 100,000 grid points, got log(1.0, 2.0, 1)"),
        ("uniform(1)", "must be a list such as [0.0, 0.1], range(3)"),
        ("0.1", "must be a list such as [0.0, 0.1], range(3)"),
        ("[0.1", "must be a list such as [0.0, 0.1], range(3)"),
        # Equal in Python, so that Optuna would run one of them twice.
        ("[1, 1.0]", "values of x must differ in more than their types, got [1, 1.0]"),
        ("[0, False]", "values of x must differ in more than their types"),
        ("range(1, 5, 0)", "must be a list such as [0.0, 0.1], range(3)"),
        ("[1e999]", "values of x must be finite, got [1e999]"),
        ("uniform(0.0, 1e999)", "the range of x must be finite"),
        ("[[1]]", "values of x must be numbers, strings, True, False or None"),
        # More than a sweep can have, rejected before it takes the memory.
        ("range(10000000000)", "x must have at most 100,000 values"),
        (f"range({2**63})", "x must have at most 100,000 values"),
        ("log(1e-4, 1e-2, 1000000000)", "x must have 2 to 100,000 grid points"),
        (f"uniform(1, 1{'0' * 400})", "the range of x must be finite"),
        # Sizes that no sample could have, or whose difference or ratio is infinite.
        (f"uniform(0, {10**300})", "the bounds of x must be at most 1e+100 in size"),
        ("uniform(-1e308, 1e308)", "the bounds of x must be at most 1e+100 in size"),
        ("log(1e-308, 1.0)", "those of a log range at least 1e-100, got log(1e-308, 1.0)"),
        (f"uniform(0, {2**53 + 1})", "integer bounds of x must be at most 9,007,199,254,740,992"),
        (f"[{'9' * 5000}]", "must be a list such as [0.0, 0.1], range(3)"),
        ("{[]: 1}", "must be a list such as [0.0, 0.1], range(3)"),
        ("[1,\n1.0]", "differ in more than their types, got '[1,\\n1.0]'"),
        ("[" * 5000, "must be a list such as [0.0, 0.1], range(3)"),
    ],
)
def test_invalid_values_are_rejected(text, message):
    with pytest.raises(UserError) as error:
        parse(text)
    assert message in str(error.value)
    assert str(error.value).isprintable()


def test_repeated_values_are_rejected_unless_requested():
    space = parse_space({"x": "[1, 2, 1]", "y": "[0, 5]"})
    with pytest.raises(UserError, match=r"of x must be different .*, got \[1, 2, 1\]; use --allow"):
        check_no_repeats(space)
    assert [setting["x"] for setting in grid_settings(space)] == [1, 1, 2, 2, 1, 1]
    assert space["x"].num_values == 2


def test_a_grid_needs_points():
    with pytest.raises(UserError, match=r"a grid needs points of x: write log\(1e-05, 1.0, 5\)"):
        grid_settings(parse_space({"x": "log(1e-5, 1.0)"}))
