import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from t5lite.parallel.mesh import Mesh
from t5lite.planning.program_text import Program, _group, _parsed

LOOP = """HloModule m
%body (p: (s32[], f32[4,8], f32[8,8])) -> (s32[], f32[4,8], f32[8,8]) {
  %p = (s32[], f32[4,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %w = f32[8,8]{1,0} get-tuple-element(%p), index=2
  %y = f32[4,8]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[], f32[4,8]{1,0}, f32[8,8]{1,0}) tuple(%next, %y, %w)
}
%cond (p.1: (s32[], f32[4,8], f32[8,8])) -> pred[] {
  %p.1 = (s32[], f32[4,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %end = s32[] constant(11)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}
ENTRY %main (a: f32[4,8], b: f32[8,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %one = s32[] constant(1)
  %t = (s32[], f32[4,8]{1,0}, f32[8,8]{1,0}) tuple(%one, %a, %b)
  %l = (s32[], f32[4,8]{1,0}, f32[8,8]{1,0}) while(%t), condition=%cond, body=%body
  ROOT %r = f32[4,8]{1,0} get-tuple-element(%l), index=1
}
"""


def test_iterations_of_a_loop_follow_from_its_bounds_and_step():
    program = Program(LOOP)
    # 1, 3, 5, 7, 9
    assert program.times == {"body": 5, "cond": 0, "main": 1}
    assert program.flops() == 5 * 2 * 4 * 8 * 8


CONVOLUTION = """ENTRY %main (a: f32[2,6,3], b: f32[3,3,5]) -> f32[2,6,5] {
  %a = f32[2,6,3]{2,1,0} parameter(0)
  %b = f32[3,3,5]{2,1,0} parameter(1)
  ROOT %c = f32[2,6,5] convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f
}
"""


def test_a_convolution_counts_no_padding():
    # Of 6 places with a window of 3, the first and the last reach over the end.
    assert Program(CONVOLUTION).flops() == 2 * 2 * 5 * 3 * (6 * 3 - 2)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", [0, 2]),
        ("replica_groups=[2,4]<=[8], dimensions={0}", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, dimensions={0}", [0, 4]),
        ("source_target_pairs={{0,0},{1,3},{3,1}}", [1, 3]),
    ],
)
def test_device_groups_are_parsed_in_every_notation(text, group):
    assert _group(_parsed("x", f"f32[4] all-gather(%y), channel_id=1, {text}")) == group


def test_an_asynchronous_all_reduce_counts_all_results():
    text = """ENTRY %main (a: f32[1000], b: f32[8]) -> f32[8] {
  %a = f32[1000]{0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %s = (f32[1000]{0}, f32[8]{0}) all-reduce-start(%a, %b), replica_groups=[1,8]<=[8], to_apply=%add
  %d = (f32[1000]{0}, f32[8]{0}) all-reduce-done(%s)
  ROOT %r = f32[8]{0} get-tuple-element(%d), index=1
}
"""
    (made,) = Program(text).collectives({"data": 8})
    assert made.payload_bytes == 4032
    assert made.sent_bytes == 2 * 4032 * 7 / 8


def test_groups_along_a_part_of_an_axis_are_counted():
    text = """ENTRY %main (a: f32[500]) -> f32[1000] {
  %a = f32[500]{0} parameter(0)
  ROOT %g = f32[1000]{0} all-gather(%a), channel_id=1, replica_groups=[4,2]<=[8], dimensions={0}
}
"""
    (made,) = Program(text).collectives({"fsdp": 8})
    assert made.sent_bytes == 4000 / 2


def test_a_loop_of_unknown_iterations_is_reported():
    program = Program(LOOP.replace("direction=LT", "direction=NE"))
    assert program.flops() == 2 * 4 * 8 * 8
    assert program.unread_loops == {"l"}


def compiled(function, mesh, *shapes_and_specs):
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh.devices, spec))
        for shape, spec in shapes_and_specs
    ]
    replicated = jax.NamedSharding(mesh.devices, P())
    lowered = jax.jit(function, out_shardings=replicated).lower(*arguments)
    return Program(lowered.compile().as_text())


def test_collectives_are_counted_by_kind_axis_and_bytes():
    mesh = Mesh(data=2, tensor=4).make()
    program = compiled(
        lambda x, w: x @ w, mesh, ((8, 16), P("data", "tensor")), ((16, 32), P("tensor"))
    )
    made = {(c.kind, c.axes): c for c in program.collectives(mesh.shape)}
    # Partial products [4, 32] are added up over tensor, twice 3 / 4 of them sent; then the rows of
    # the other half are fetched.
    assert made["all-reduce", ("tensor",)].sent_bytes == 2 * 4 * 32 * 4 * 3 / 4
    assert made["all-gather", ("data",)].sent_bytes == 8 * 32 * 4 / 2


def test_a_collective_in_a_loop_counts_once_an_iteration():
    mesh = Mesh(data=1, fsdp=8).make()

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    program = compiled(layers, mesh, ((8, 16), P("fsdp")), ((6, 16, 16), P(None, "fsdp")))
    gathers = [c for c in program.collectives(mesh.shape) if c.kind == "all-gather" and c.times > 1]
    assert [(c.axes, c.times) for c in gathers] == [(("fsdp",), 6)]
    assert gathers[0].sent_bytes == 6 * 16 * 16 * 4 * 7 / 8
    assert program.flops() == 6 * 2 * 1 * 16 * 16


BETWEEN_SLICES = """ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %t = token[] after-all()
  %s = (f32[8,128]{1,0}, u32[]{:S(2)}, token[]) send(%a, %t), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %o = (f32[2]{0}, u32[], token[]) send(%a, %t), channel_id=4, is_host_transfer=true
  ROOT %r = f32[8,128]{1,0} add(%a, %a)
}
"""


def test_traffic_of_tpu_slices_through_hosts_is_counted():
    (found,) = Program(BETWEEN_SLICES).collectives({"dcn": 4, "fsdp": 4})
    assert (found.kind, found.axes, found.times) == ("all-reduce", ("dcn",), 1)
    # Two rounds, in each of which a slice sends all but its own quarter.
    assert found.sent_bytes == 2 * 8 * 128 * 4 * 3 / 4
