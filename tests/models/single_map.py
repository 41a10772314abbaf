"""One linear map with adapters, and the same computed by NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.models.adapters import Axis, MapSite
from t5lite.models.initializers import ScaledInit
from t5lite.models.linear import LinearMap

EMBED = Axis("embed", 6)
HEADS = (Axis("heads", 2), Axis("kv", 4))
SHAPES = {
    "query": {"einsum": "ble,ehd->blhd", "inputs": (EMBED,), "outputs": HEADS},
    "out": {"einsum": "blhd,hde->ble", "inputs": HEADS, "outputs": (EMBED,)},
    "biased": {"einsum": "ble,ehd->blhd", "inputs": (EMBED,), "outputs": HEADS, "has_bias": True},
    "experts": {
        "einsum": "xbce,xef->xbcf",
        "stacked": (Axis("experts", 3),),
        "inputs": (EMBED,),
        "outputs": (Axis("mlp", 5),),
    },
}


def make(shape, *adapters):
    """Returns a map of one of these shapes."""
    init = ScaledInit(1.0, "normal", in_axes=(0,))
    return LinearMap(**SHAPES[shape], initializer=init, full_name="mlp/query", adapters=adapters)


def drawn(one, rng):
    """Returns an input and random parameters of a map, by name."""
    stacked = tuple(axis.size for axis in one.stacked)
    inputs = tuple(axis.size for axis in one.inputs)
    x = rng.normal(size=(*stacked, 2, 3, *inputs)).astype(np.float32)
    shapes = jax.eval_shape(lambda: one.init(jax.random.key(0), jnp.asarray(x)))["params"]
    params = {
        name: jnp.asarray(rng.normal(size=box.value.shape), jnp.float32)
        for name, box in shapes.items()
    }
    return jnp.asarray(x), params


def site(one, params):
    """Returns the map as an adapter sees it."""
    return MapSite(
        name=one.full_name,
        einsum=one.einsum,
        stacked=one.stacked,
        inputs=one.inputs,
        outputs=one.outputs,
        kernel=params["kernel"],
        parameter=lambda *arguments: None,
        bias=params.get("bias"),
    )


def matrices(one, values, *, inputs, outputs):
    """Returns a parameter as float64 [stacked, inputs, outputs]; 0 for a size that it defines."""
    stacked = math.prod(axis.size for axis in one.stacked)
    return np.asarray(values, np.float64).reshape(stacked, inputs, outputs)


def sizes(one):
    """Returns the numbers of inputs and of outputs."""
    return [math.prod(axis.size for axis in axes) for axes in (one.inputs, one.outputs)]


def product(one, x, kernel, bias=None):
    """Returns x @ kernel + bias in float64, in the shape of the map's result."""
    stacked = tuple(axis.size for axis in one.stacked)
    rows = np.asarray(x, np.float64).reshape(math.prod(stacked), -1, sizes(one)[0])
    result = np.stack([row @ matrix for row, matrix in zip(rows, kernel, strict=True)])
    if bias is not None:
        result = result + np.asarray(bias, np.float64).reshape(1, 1, -1)
    return result.reshape(*stacked, 2, 3, *(axis.size for axis in one.outputs))
