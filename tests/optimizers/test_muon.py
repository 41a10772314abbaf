import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from t5lite.core.lazy import by_name
from t5lite.models.architectures import EncoderDecoder
from t5lite.optimizers.muon import matrix_dimensions, muon
from t5lite.training.state import params_and_axes
from tests import small

AXES = {
    "query": ("layers", "embed", "heads", "kv"),
    "out": ("layers", "heads", "kv", "embed"),
    "wi": ("layers", "experts", "embed", "mlp"),
    "scale": ("layers", "embed"),
    "embedding": ("vocab", "embed"),
}
SIZES = {"layers": 3, "experts": 2, "embed": 8, "heads": 2, "kv": 3, "mlp": 10, "vocab": 5}


def test_stacked_kernels_are_one_matrix_for_each_layer():
    rng = np.random.default_rng(0)

    def random():
        shapes = {name: tuple(SIZES[axis] for axis in axes) for name, axes in AXES.items()}
        return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}

    params, steps = random(), [random() for _ in range(2)]

    def updates_of(transformation, params, steps):
        state = transformation.init(params)
        for grads in steps:
            updates, state = jax.jit(transformation.update)(grads, state, params)
        return updates

    options = {"learning_rate": 0.1, "weight_decay": 0.01, "adam_weight_decay": 0.02}
    ours = updates_of(muon(param_axes=AXES, **options), params, steps)

    def apart(tree):
        """Every layer and expert as a matrix of its own, the way optax expects them."""
        made = {}
        for i in range(3):
            made[f"query{i}"] = tree["query"][i].reshape(8, 6)
            made[f"out{i}"] = tree["out"][i].reshape(6, 8)
            made |= {f"wi{i}{j}": tree["wi"][i, j] for j in range(2)}
        return made

    wanted = updates_of(optax.contrib.muon(**options), apart(params), [apart(g) for g in steps])
    for name, value in apart(ours).items():
        # The same products, batched.
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)
    adam = optax.nadamw(0.1, weight_decay=0.02)
    rest = [{k: g[k] for k in ("scale", "embedding")} for g in steps]
    wanted = updates_of(adam, {k: params[k] for k in ("scale", "embedding")}, rest)
    for name, value in wanted.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_of_a_model_the_hidden_kernels_are_matrices():
    _, axes = params_and_axes(EncoderDecoder(small.config(num_experts=4)))
    found = by_name(matrix_dimensions(axes), is_leaf=lambda x: isinstance(x, tuple) or x is None)
    matrices = {name.split("/")[-2] for name, dimensions in found.items() if dimensions is not None}
    assert matrices == {"query", "key", "value", "out", "wi_0", "wi_1", "wo", "router"}
