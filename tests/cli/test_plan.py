import json

import pytest

QUICKSTART = ("plan", "--gin_file=gin/run/quickstart.gin")


def test_a_plan_for_simulated_devices_counts_the_costs_of_the_step(t5lite):
    flags = ("--gin.Mesh.fsdp=2", "--gin.Mesh.tensor=2", "--topology=cpu:8", "--json")
    status, out, err = t5lite(*QUICKSTART, *flags)
    assert status == 0, err
    plan = json.loads(out)
    assert plan["devices"] == 8
    assert {axis: size for axis, size in plan["mesh"].items() if size > 1} == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }
    # Without rematerialization the program has the FLOPs of the formula, loops included.
    assert plan["program_flops"] == pytest.approx(plan["model_flops"], rel=1e-3)
    # Float32 parameters and their two moments, most of them sharded by four.
    memory = plan["memory_bytes"]
    assert memory["optimizer"] == pytest.approx(2 * memory["params"], abs=8)
    assert plan["held_whole"] == []
    kinds = {(row["kind"], *row["axes"]) for row in plan["collectives"]}
    assert {("all-gather", "fsdp"), ("all-reduce", "tensor")} <= kinds
    # The rates of simulated devices are unknown.
    assert plan["bound"] is None
    assert plan["fits"] is None
    assert plan["loops_not_read"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "plan needs --topology"),
        (["--topology=cpu:8", "--tries=2"], "--tries is for --suggest, got --tries=2 without it"),
        (["--topology=cpu:8", "--hlo=none/x.txt"], "--hlo must be a file in an existing directory"),
        (["--topology=v9:2x2"], "--topology must be one of v4, v5e"),
        (["--topology=cpu:0"], "--topology cpu:N needs a number of devices, got 'cpu:0'"),
        (["--topology=v5e:16x16x16"], "--topology v5e needs 2 sizes with x between them, 256"),
        (["--topology=v5p:0x4x4"], "--topology v5p needs 3 sizes with x between them, 8,960"),
    ],
)
def test_a_wrong_flag_is_an_error_on_one_line_before_anything_is_compiled(flags, message, command):
    status, _, err = command(*QUICKSTART, *flags)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gin.Mesh.tensor=16"], "Mesh must use all 8 devices"),
        (["--gin.Mesh.tensor=8"], "its axis 'heads' must be divisible"),
        (["--suggest"], "--suggest needs "),
    ],
)
def test_a_plan_that_does_not_fit_simulated_devices_is_an_error(flags, message, t5lite):
    """In processes of their own: the number of devices is fixed once JAX has started."""
    status, _, err = t5lite(*QUICKSTART, "--topology=cpu:8", *flags)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
