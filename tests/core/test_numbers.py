import jax
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.numbers import Number, as_inputs, check_number, numeric, static


@numeric
class Pair:
    rate: Number
    steps: Number = 3
    name: str = static(default="a")


def test_numbers_are_leaves_and_choices_are_structure():
    leaves, structure = jax.tree.flatten(Pair(rate=0.5))
    assert leaves == [0.5, 3]
    assert structure != jax.tree.structure(Pair(rate=0.5, name="b"))


def test_other_numbers_do_not_recompile():
    traced = []

    @jax.jit
    def product(pair: Pair) -> jax.Array:
        traced.append(pair)
        return pair.rate * pair.steps

    results = [product(as_inputs(Pair(rate=r, steps=s))) for r, s in [(0.5, 2), (2.0, 8)]]
    assert [float(r) for r in results] == [1.0, 16.0]
    assert len(traced) == 1


def test_whole_numbers_are_inputs_too():
    inputs = as_inputs(Pair(rate=1, steps=np.int32(7)))
    assert (inputs.rate.dtype, inputs.steps.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "0.1", True])
def test_numbers_out_of_range_are_rejected(value):
    with pytest.raises(UserError, match="Pair.rate must be "):
        check_number("Pair.rate", value, "at least 0", lambda x: x >= 0)


def test_a_number_larger_than_all_floats_is_rejected():
    with pytest.raises(UserError, match="top_k must be at least 0, got 1000"):
        check_number("top_k", 10**400, "at least 0", lambda n: n >= 0)
