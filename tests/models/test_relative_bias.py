import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.models.relative_bias import bias_from_distances, relative_position_bucket

# The first distance of each bucket, from running T5X at its head of April 2026.
BIDIRECTIONAL = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
CAUSAL = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


@pytest.mark.parametrize(("bidirectional", "firsts"), [(True, BIDIRECTIONAL), (False, CAUSAL)])
def test_buckets_begin_at_the_distances_of_t5x(bidirectional, firsts):
    distances = -np.arange(600)
    buckets = relative_position_bucket(
        distances, bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    assert [int(np.argmax(buckets == b)) for b in range(len(firsts))] == firsts
    assert np.all(np.diff(buckets) >= 0)


def published_bucket(relative_position, bidirectional, num_buckets, max_distance):
    """`T5Attention._relative_position_bucket` of transformers 5.24, in float32 like its tensors."""
    relative_buckets = 0
    if bidirectional:
        num_buckets //= 2
        relative_buckets = (relative_position > 0).astype(np.int64) * num_buckets
        relative_position = np.abs(relative_position)
    else:
        relative_position = -np.minimum(relative_position, 0)
    max_exact = num_buckets // 2
    is_small = relative_position < max_exact
    with np.errstate(divide="ignore"):
        large = np.log(relative_position.astype(np.float32) / np.float32(max_exact))
    large = large / np.float32(math.log(max_distance / max_exact))
    large = large * np.float32(num_buckets - max_exact)
    large = max_exact + np.where(is_small, 0, large).astype(np.int64)
    large = np.minimum(large, num_buckets - 1)
    return relative_buckets + np.where(is_small, relative_position, large)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_the_published_formula_in_all_settings(bidirectional):
    settings = 0
    for num_buckets in (*range(4, 132, 4), 17):
        exact = num_buckets // (4 if bidirectional else 2)
        for max_distance in (*range(exact + 1, exact + 33), 50, 100, 128, 200, 512):
            if max_distance <= exact:
                continue
            distances = np.arange(-max_distance - 40, max_distance + 41)
            expected = published_bucket(distances, bidirectional, num_buckets, max_distance)
            got = relative_position_bucket(
                distances,
                bidirectional=bidirectional,
                num_buckets=num_buckets,
                max_distance=max_distance,
            )
            np.testing.assert_array_equal(got, expected, err_msg=f"{num_buckets}, {max_distance}")
            assert got.max() < num_buckets
            settings += 1
    assert settings > 1000


def test_a_distance_at_a_border_has_the_bucket_of_transformers():
    # The product of the two constants, rounded once, would give 47.
    bucket = relative_position_bucket(
        np.array([-40]), bidirectional=False, num_buckets=64, max_distance=50
    )
    assert bucket.tolist() == [48]


def test_later_keys_have_the_upper_half_of_the_buckets():
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
