import jax
import pytest

from t5lite.core.errors import UserError
from t5lite.models.architectures import EncoderDecoder
from t5lite.parallel.hardware import GIB, Device
from t5lite.planning.costs import Costs, Memory, _out_of_memory, bound_of, by_kind_and_axis
from t5lite.planning.program_text import Collective, Program
from t5lite.planning.remedies import remedies
from t5lite.planning.suggest import candidates, take_candidate
from tests import small

DEVICE = Device(
    flops=100e12, hbm_bytes=16 * GIB, ici_bytes_per_second=200e9, dcn_bytes_per_second=2e9
)
LENGTHS = {"encoder_input_tokens": 512, "decoder_input_tokens": 128}


def collective(axes, sent_bytes, kind="all-reduce", payload_bytes=0.0, times=3):
    return Collective(kind, axes, "f32", (4,), payload_bytes, sent_bytes, times)


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
def test_out_of_memory_errors_of_the_compiler_are_parsed(message, numbers):
    assert _out_of_memory(jax.errors.JaxRuntimeError(message)) == numbers


def test_another_failure_of_the_compiler_is_one_line():
    with pytest.raises(UserError, match="^the compiler cannot compile the step: INTERNAL: no$"):
        _out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: no\nand much more"))


def test_the_bound_is_the_slowest_of_compute_and_both_networks():
    mesh = {"dcn": 2, "fsdp": 4}
    quiet = bound_of(costs([collective(("fsdp",), 20e9)]), DEVICE, mesh)
    assert (quiet.seconds, quiet.slowest) == (0.6, "compute")
    assert quiet.ici_seconds == pytest.approx(0.1)
    # What the model is for, over what the devices could do in that time.
    assert quiet.mfu_fraction == pytest.approx(50 / 60)


def test_traffic_between_slices_is_shared_among_their_devices():
    mesh = {"dcn": 2, "fsdp": 4}
    far = collective(("dcn", "fsdp"), 0.0, payload_bytes=8e9, times=1)
    bound = bound_of(costs([far]), DEVICE, mesh)
    # Added up within a slice, 3 / 4 sent; a quarter of it by each device to the other slice, half
    # of that in each direction of two rounds; and 3 / 4 of it sent round the slice again.
    assert bound.ici_seconds == pytest.approx(2 * 8e9 * 3 / 4 / 200e9)
    assert bound.dcn_seconds == pytest.approx(2 * 8e9 / 2 / 4 / 2e9)
    assert bound.slowest == "network between slices"


def test_collectives_are_summed_by_kind_and_axes():
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
def test_remedies_start_with_the_largest_saving(memory, first):
    mesh = {"data": 4, "fsdp": 2, "tensor": 1}
    model = EncoderDecoder(small.config())
    found = remedies(
        *(costs(**memory), model, mesh),
        rows=8,
        microbatches=1,
        loss_chunks=1,
        param_dtype="float32",
    )
    assert found[0].startswith(first)
    assert all(line.startswith("--gin.") for line in found)


def test_remedies_exclude_what_is_set_or_does_not_divide():
    found = remedies(
        costs(params=10**10, host_optimizer=5),
        EncoderDecoder(small.config(remat="full")),
        {"data": 1, "fsdp": 8, "tensor": 1},
        rows=6,
        microbatches=2,
        loss_chunks=8,
        param_dtype="bfloat16",
    )
    assert found == []


def test_remedies_divide_the_sizes_of_both_stacks():
    sizes = {"embed_dim": 16, "encoder_embed_dim": 24, "separate_embeddings": True}
    model = EncoderDecoder(small.config(num_heads=4, encoder_num_heads=2, **sizes))
    asked = {"rows": 4, "microbatches": 1, "loss_chunks": 8, "param_dtype": "bfloat16"}

    def found(**axes):
        mesh = {"data": 8, "fsdp": 1, "tensor": 1, **axes}
        return " ".join(remedies(costs(params=10**9), model, mesh, **asked))

    assert "Mesh.fsdp=8 " in found(fsdp=4)
    # It divides 16, but not 24.
    assert "Mesh.fsdp" not in found(fsdp=8)
    assert "Mesh.tensor=2 " in found()
    # It divides 4 heads, but not 2.
    assert "Mesh.tensor" not in found(tensor=2)


def test_candidates_divide_the_sizes_of_both_stacks():
    narrow = {"encoder_embed_dim": 24, "encoder_num_heads": 2, "separate_embeddings": True}
    meshes = [choice.mesh for choice in found(narrow)]
    assert {mesh["fsdp"] for mesh in meshes} == {1, 2, 4, 8}
    assert {mesh["tensor"] for mesh in meshes} == {1, 2}


def found(sizes=None, **changes):
    model = EncoderDecoder(small.config(num_heads=4, embed_dim=64, mlp_dim=128, **(sizes or {})))
    mesh = dict.fromkeys(("dcn", "fsdp", "expert", "sequence", "tensor"), 1) | {"data": 16}
    of_state = {"params_bytes": 1e6, "optimizer_bytes": 2e6}
    arguments = {"batch_size": 64, "mesh": mesh, **of_state, **changes}
    return candidates(model, LENGTHS, device=DEVICE, **arguments)


def test_candidates_divide_heads_width_and_rows():
    for choice in found():
        sizes = choice.mesh
        assert 4 % sizes["tensor"] == 0
        assert 64 % sizes["fsdp"] == 0
        assert 16 % (sizes["tensor"] * sizes["fsdp"]) == 0
        assert (64 * sizes["tensor"] / 16 / choice.microbatches).is_integer()


def test_the_best_candidate_has_no_remat_if_everything_fits():
    best = found()[0]
    assert (best.remat, best.microbatches) == ("none", 1)


def test_no_candidate_at_all_is_an_error():
    with pytest.raises(UserError, match="no mesh of 16 devices divides a batch of 3 rows"):
        found(batch_size=3)


def test_excess_memory_corrects_the_estimates_of_other_candidates():
    left = found(params_bytes=7e9, optimizer_bytes=14e9)
    count = len(left)
    first, second = take_candidate(left, DEVICE, 1.0), take_candidate(left, DEVICE, 3.0)
    assert first.bytes <= DEVICE.hbm_bytes < 3 * first.bytes
    assert 3 * second.bytes <= DEVICE.hbm_bytes
    assert len(left) == count - 2
    # Where nothing fits, what needs least is the best guess.
    least = min(choice.bytes for choice in left)
    assert take_candidate(left, DEVICE, 1e9).bytes == least
