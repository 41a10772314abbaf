import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from t5lite.parallel.mesh import Mesh
from t5lite.planning.gathers import unsplit_arrays
from t5lite.planning.program_text import Program
from tests import small


def params_of(mesh):
    sharding = jax.NamedSharding(mesh.devices, P(None, "fsdp"))
    kernel = jax.ShapeDtypeStruct((3, 16, 24), jnp.float32, sharding=sharding)
    return {"encoder": {"layers": {"wi": {"kernel": kernel}}}}


def found(function):
    """What a function of stacked kernels and of all rows of a batch gathers."""
    mesh = Mesh(data=1, fsdp=8).make()
    params = params_of(mesh)
    rows = jax.NamedSharding(mesh.devices, P("fsdp"))
    batch = jax.ShapeDtypeStruct((40, 5, 16), jnp.float32, sharding=rows)
    kernel = params["encoder"]["layers"]["wi"]["kernel"]
    text = jax.jit(function).lower(kernel, batch).compile().as_text()
    return unsplit_arrays(
        Program(text),
        params,
        rows=40,
        lengths={"encoder_input_tokens": 5},
        config=small.config(),
    )


def narrow(x, w):
    return (x @ w)[..., :16], None


def test_layers_gathered_one_at_a_time_are_not_reported():
    assert found(lambda w, x: jax.lax.scan(narrow, x, w)[0]) == ()


def test_layers_gathered_all_at_once_are_reported():
    def all_at_once(w, x):
        w = jax.lax.with_sharding_constraint(w, P())
        return jax.lax.scan(narrow, x, w)[0]

    mesh = Mesh(data=1, fsdp=8).make()
    with jax.set_mesh(mesh.devices):
        assert found(all_at_once) == ("all layers of encoder/layers/wi/kernel",)


def test_all_rows_on_one_device_are_reported():
    mesh = Mesh(data=1, fsdp=8).make()
    with jax.set_mesh(mesh.devices):
        gathered = found(lambda w, x: jax.lax.with_sharding_constraint(x, P()) * w.sum())
    assert gathered == ("activations of all 40 rows of 5 tokens",)
