import jax
import jax.numpy as jnp
import numpy as np

from t5lite.models.dropout import dropout


def test_dropout_keeps_the_mean_and_the_given_fraction():
    x = jnp.ones((200, 3, 500))
    dropped = dropout(x, 0.3, jax.random.key(0))
    kept = np.asarray(dropped != 0)
    # 100,000 draws: a standard deviation of 0.0015.
    assert abs(kept.mean() - 0.7) < 0.006
    np.testing.assert_allclose(np.asarray(dropped)[kept], 1 / 0.7, rtol=1e-6)


def test_dropout_has_one_mask_for_all_positions():
    kept = dropout(jnp.ones((2, 5, 64)), 0.5, jax.random.key(0)) != 0
    np.testing.assert_array_equal(kept, jnp.broadcast_to(kept[:, :1], kept.shape))
