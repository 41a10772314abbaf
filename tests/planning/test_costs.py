import jax
import pytest

from t5lite.core.errors import UserError
from t5lite.models.architectures import EncoderDecoder
from t5lite.parallel.hardware import GIB, Device
from t5lite.planning.costs import Costs, Memory, _out_of_memory, bound_of, by_kind_and_axis
from t5lite.planning.program_text import Collective, Program
from t5lite.planning.remedies import remedies
from t5lite.planning.suggest import choices, to_try
from tests import small

DEVICE = Device(
    flops=100e12, hbm_bytes=16 * GIB, ici_bytes_per_second=200e9, dcn_bytes_per_second=2e9
)
LENGTHS = {"encoder_input_tokens": 512, "decoder_input_tokens": 128}


def collective(axes, sent_bytes, kind="all-reduce"):
    return Collective(kind, axes, "f32", (4,), sent_bytes, 3)


def costs(collectives=(), **memory):
    sizes = dict.fromkeys(("params", "optimizer", "host_optimizer", "inputs", "code"), 0)
    return Costs(
        memory=Memory(**{**sizes, "temporary": 0, **memory}),
        model_flops=50e12,
        program_flops=60e12,
        collectives=tuple(collectives),
        program=Program(""),
    )


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (
            "E1000: required for HLO temporaries (120.64G) exceeds available HBM (15.75G).",
            (int(120.64 * GIB), int(15.75 * GIB)),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm.",
            (int(512.5 * 2**20), int(15.75 * GIB)),
        ),
    ],
)
def test_what_the_compiler_says_of_memory_is_read(message, numbers):
    assert _out_of_memory(jax.errors.JaxRuntimeError(message)) == numbers


def test_another_failure_of_the_compiler_is_told_on_one_line():
    with pytest.raises(UserError, match="^the compiler cannot compile the step: INTERNAL: no$"):
        _out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: no\nand much more"))


def test_the_bound_is_the_slowest_of_compute_and_both_networks():
    mesh = {"dcn": 2, "fsdp": 4}
    quiet = bound_of(costs([collective(("fsdp",), 20e9)]), DEVICE, mesh)
    assert (quiet.seconds, quiet.slowest) == (0.6, "compute")
    assert quiet.ici_seconds == pytest.approx(0.1)
    # What the model is for, over what the devices could do in that time.
    assert quiet.mfu_fraction == pytest.approx(50 / 60)
    # Each of the four devices of a slice sends a quarter of it to the other slice.
    far = bound_of(costs([collective(("dcn", "fsdp"), 8e9)]), DEVICE, mesh)
    assert far.dcn_seconds == pytest.approx(8e9 / 4 / 2e9)
    assert far.slowest == "network between slices"


def test_collectives_are_added_up_by_kind_and_axes():
    made = [collective(("fsdp",), 1.0), collective(("fsdp",), 2.0), collective(("data",), 9.0)]
    assert by_kind_and_axis(tuple(made)) == [
        {"kind": "all-reduce", "axes": ["data"], "times": 3, "sent_bytes": 9.0},
        {"kind": "all-reduce", "axes": ["fsdp"], "times": 6, "sent_bytes": 3.0},
    ]


@pytest.mark.parametrize(
    ("memory", "first"),
    [
        ({"params": 10**10, "temporary": 10**9}, "--gin.Mesh.fsdp=4 --gin.Mesh.data=-1"),
        ({"params": 10**9, "temporary": 10**10}, "--gin.T5Config.remat=attention"),
    ],
)
def test_remedies_begin_with_what_takes_most(memory, first):
    mesh = {"data": 4, "fsdp": 2, "tensor": 1}
    model = EncoderDecoder(small.config())
    told = remedies(costs(**memory), model, mesh, rows=8, microbatches=1, param_dtype="float32")
    assert told[0].startswith(first)
    assert all(line.startswith("--gin.") for line in told)


def found(**changes):
    model = EncoderDecoder(small.config(num_heads=4, embed_dim=64, mlp_dim=128))
    arguments = {"batch_size": 64, "num_devices": 16, "num_slices": 1, "state_bytes": 1e6}
    return choices(model, LENGTHS, device=DEVICE, **{**arguments, **changes})


def test_choices_divide_heads_width_and_rows():
    for choice in found():
        sizes = dict(choice.mesh)
        assert 4 % sizes["tensor"] == 0
        assert 64 % sizes["fsdp"] == 0
        assert 16 % (sizes["tensor"] * sizes["fsdp"]) == 0
        assert (64 * sizes["tensor"] / 16 / choice.microbatches).is_integer()


def test_nothing_is_computed_again_or_split_up_where_all_of_it_fits():
    best = found()[0]
    assert (best.remat, best.microbatches) == ("none", 1)


def test_no_choice_at_all_is_told():
    with pytest.raises(UserError, match="no mesh of 16 devices divides a batch of 3 rows"):
        found(batch_size=3)


def test_what_needed_more_than_estimated_corrects_the_choices_that_are_left():
    tried = []
    every = found(state_bytes=20e9)
    for choice, needed in to_try(every, DEVICE, most=3):
        tried.append(choice)
        needed.append(choice.bytes * 3)
    assert tried[0].bytes <= DEVICE.hbm_bytes
    assert all(choice.bytes * 3 <= DEVICE.hbm_bytes for choice in tried[1:])
