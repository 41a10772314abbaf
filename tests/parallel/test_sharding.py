import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from t5lite.core.errors import UserError
from t5lite.optimizers.adafactor import adafactor
from t5lite.parallel.mesh import Mesh, _slices
from t5lite.parallel.sharding import (
    batch_sharding,
    local_rows,
    make_global,
    sharding_of,
    state_axes,
)

MESH = Mesh(data=2, fsdp=2, tensor=2)


def test_one_axis_takes_the_rest():
    sizes = {"dcn": 1, "data": 2, "fsdp": 1, "expert": 1, "sequence": 1, "tensor": 4}
    assert Mesh(tensor=4).make().shape == sizes


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "must use all 8 devices, got {'dcn': 1, 'data': 3"),
        ({"population": 3}, "Mesh.population must be a divisor of the 8 devices, got 3"),
        ({"population": 0}, "Mesh.population must be a number > 0, got 0"),
        ({"dcn": 3}, "Mesh.dcn must divide the 8 devices, got 3"),
        ({"data": 1}, "must use all 8 devices"),
        ({"tensor": 16}, "must use all 8 devices"),
        ({"fsdp": -1}, "at most one of them -1"),
        ({"fsdp": 0}, "must be whole numbers > 0"),
        ({"dcn": -1, "data": 1}, "must be whole numbers > 0, at most one of them -1 .* not dcn"),
    ],
)
def test_sizes_that_do_not_form_a_mesh_are_rejected(sizes, message):
    with pytest.raises(UserError, match=message):
        Mesh(**sizes).make()


def test_parameters_are_split_by_the_rules():
    mesh = MESH.make()
    sharding = sharding_of(("layers", "embed", "heads", "kv"), (2, 8, 4, 3), mesh, owner="query")
    assert sharding.spec == P(None, ("fsdp",), ("tensor",), None)
    assert sharding.shard_shape((2, 8, 4, 3)) == (2, 4, 2, 3)


def test_an_axis_that_the_mesh_does_not_divide_is_rejected_with_both_sizes():
    with pytest.raises(UserError, match=r"query: its axis 'heads' .* \(tensor 2\), got 5"):
        sharding_of(("embed", "heads"), (8, 5), MESH.make(), owner="query")


def test_a_batch_that_the_mesh_does_not_divide_is_rejected():
    with pytest.raises(UserError, match=r"batch_size: .* \(data 2 \* fsdp 2\), got 6"):
        batch_sharding(MESH.make(), 6)


AXES = {"a": {"kernel": ("embed", "mlp")}, "b": {"kernel": ("layers", "embed", "heads", "kv")}}
PARAMS = {"a": {"kernel": jnp.zeros((6, 4))}, "b": {"kernel": jnp.zeros((3, 6, 2, 5))}}


@pytest.mark.parametrize(
    "transformation",
    [
        optax.adamw(1e-3),
        optax.MultiSteps(optax.chain(optax.clip(1.0), optax.lamb(1e-3)), 2),
        optax.inject_hyperparams(optax.lion)(learning_rate=1e-3),
    ],
    ids=["adamw", "multi_steps", "inject_hyperparams"],
)
def test_moments_have_the_axes_of_their_parameters(transformation):
    state = transformation.init(PARAMS)
    axes = state_axes(state, PARAMS, AXES)
    seen = []

    def check(leaf, names):
        expected = {(6, 4): AXES["a"]["kernel"], (3, 6, 2, 5): AXES["b"]["kernel"]}
        assert names == expected.get(leaf.shape, (None,) * leaf.ndim)
        seen.append(leaf.shape)

    jax.tree.map(check, state, axes)
    assert {(6, 4), (3, 6, 2, 5)} <= set(seen)


def test_factored_moments_have_the_remaining_axes():
    state = adafactor(1e-3, param_axes=AXES, min_dim_size_to_factor=2).init(PARAMS)
    axes = state_axes(state, PARAMS, AXES).second_moment
    assert tuple(axes["a"]["kernel"]) == (("embed", None), (None, "mlp"))
    assert tuple(axes["b"]["kernel"]) == (
        ("layers", "embed", None, None),
        ("layers", None, "heads", "kv"),
    )
    state = optax.scale_by_factored_rms(min_dim_size_to_factor=2).init(PARAMS)
    axes = state_axes(state, PARAMS, AXES)
    assert {axes.v_row["a"]["kernel"], axes.v_col["a"]["kernel"]} == {("embed",), ("mlp",)}


def test_rows_become_a_global_array():
    mesh = MESH.make()
    sharding = batch_sharding(mesh, 8)
    rows = local_rows(sharding, 8)
    assert rows == list(range(8))
    values = np.arange(24, dtype=np.int32).reshape(8, 3)
    placed = make_global(sharding, 8)({"x": values})["x"]
    assert placed.sharding.spec == P(("dcn", "data", "fsdp", "expert"))
    np.testing.assert_array_equal(placed, values)


class Chip:
    """A device that is not there."""

    def __init__(self, number, slice_index, platform="tpu"):
        self.id, self.slice_index, self.platform = number, slice_index, platform
        self.process_index, self.device_kind = 0, "none"


def test_tpus_have_a_copy_of_the_parameters_in_each_slice_by_default():
    chips = [Chip(number, number % 2) for number in range(8)]
    assert [len(part) for part in _slices(chips, None)] == [4, 4]
    assert {chip.slice_index for chip in _slices(chips, None)[0]} == {0}
    assert [len(part) for part in _slices(chips, 1)] == [8]
    with pytest.raises(UserError, match=r"the number of slices \(2\), or 1 .* got 4"):
        _slices(chips, 4)


def test_nodes_of_gpus_are_slices_only_if_dcn_is_bound():
    chips = [Chip(number, number // 4, "gpu") for number in range(8)]
    assert [len(part) for part in _slices(chips, None)] == [8]
    assert [len(part) for part in _slices(chips, 2)] == [4, 4]


def test_rules_are_changed_by_name_and_rejected_if_they_conflict():
    mesh = Mesh(fsdp=2, tensor=2, rules=[("embed", ["fsdp", "data"]), ("vocab", None)]).make()
    assert sharding_of(("vocab", "embed"), (8, 8), mesh, owner="e").spec == P(
        None, ("fsdp", "data")
    )
    for rules, message in (
        ([("embd", "fsdp")], "did you mean 'embed'"),
        ([("embed", "fdsp")], "did you mean 'fsdp'"),
        ([("embed", 3)], "'embed' needs a mesh axis, a list of them or None, got 3"),
        (["embed"], "must be pairs"),
        ([("length", "tensor")], "mesh axis 'tensor' cannot split both 'length' and 'heads'"),
    ):
        with pytest.raises(UserError, match=message):
            Mesh(rules=rules)


def test_a_parameter_split_twice_by_one_mesh_axis_is_rejected_by_name():
    mesh = Mesh(tensor=2, rules=[("relpos_buckets", "tensor")]).make()
    with pytest.raises(
        UserError, match="bias: mesh axis 'tensor' cannot split both 'heads' and 'rel"
    ):
        sharding_of(("heads", "relpos_buckets"), (2, 32), mesh, owner="bias")
