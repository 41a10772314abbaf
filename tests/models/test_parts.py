"""Parts from outside the package: each is a class and a row of a table."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t5lite.models.architectures import DecoderOnly
from t5lite.models.norms import NORM_PLACEMENTS, NORMS
from t5lite.models.positions import POSITIONS, PositionScheme
from tests import small


class CentredNorm(nn.Module):
    """Layer norm without parameters."""

    config: object

    def __call__(self, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-6)


class Growing(PositionScheme):
    """Queries and keys grow with their positions."""

    def placed(self, config, heads, positions):
        positions = jnp.arange(heads.shape[1]) if positions is None else positions
        return heads * (1 + 0.1 * positions.astype(heads.dtype))[None, :, None, None]


def test_a_norm_a_placement_and_a_position_scheme_are_a_row_each(monkeypatch):
    monkeypatch.setitem(NORMS, "centred", CentredNorm)
    monkeypatch.setitem(NORM_PLACEMENTS, "output", ("post",))
    monkeypatch.setitem(POSITIONS, "growing", Growing())
    config = small.decoder_config(
        num_decoder_layers=1, norm="centred", norm_placement="output", positions="growing"
    )
    model = DecoderOnly(config)
    batch = jax.tree.map(jnp.asarray, small.batch(1))
    params = model.init(jax.random.key(0), batch)["params"]
    assert params["decoder"].keys() == {"layers", "logits_dense"}
    assert params["decoder"]["layers"].keys() == {"self_attention", "mlp"}
    params = nn.unbox(params)
    x = model.apply({"params": params}, batch, method="hidden")
    # The last norm is the centred one.
    np.testing.assert_allclose(x.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.square(x).mean(axis=-1), 1, atol=1e-3)
