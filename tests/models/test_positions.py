import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.models.positions import bias_from_distances, relative_position_bucket

# The first distance in each bucket, as T5X gives them (run at its head of April 2026).
BIDIRECTIONAL = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
CAUSAL = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


@pytest.mark.parametrize(("bidirectional", "firsts"), [(True, BIDIRECTIONAL), (False, CAUSAL)])
def test_buckets_begin_where_t5x_has_them(bidirectional, firsts):
    distances = -np.arange(600)
    buckets = relative_position_bucket(
        distances, bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    assert [int(np.argmax(buckets == b)) for b in range(len(firsts))] == firsts
    assert np.all(np.diff(buckets) >= 0)


def test_keys_to_come_have_the_upper_half_of_the_buckets():
    both = [
        relative_position_bucket(d, bidirectional=True, num_buckets=32, max_distance=128)
        for d in (np.arange(1, 600), -np.arange(1, 600))
    ]
    np.testing.assert_array_equal(both[0], both[1] + 16)


def test_bias_from_distances_equals_a_gather_and_so_does_its_gradient():
    values = jax.random.normal(jax.random.key(1), (3, 5 + 7 - 1))
    index = np.arange(7)[None, :] - np.arange(5)[:, None] + 4
    weights = jax.random.normal(jax.random.key(2), (1, 3, 5, 7))

    def total(bias):
        return lambda v: jnp.sum(bias(v) * weights)

    np.testing.assert_array_equal(bias_from_distances(values, 5, 7), values[:, index][None])
    mine = jax.grad(total(lambda v: bias_from_distances(v, 5, 7)))(values)
    gathered = jax.grad(total(lambda v: v[:, index][None]))(values)
    # float32 sums of at most five numbers, in another order.
    np.testing.assert_allclose(mine, gathered, rtol=1e-5, atol=1e-6)
