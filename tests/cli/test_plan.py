import json

import pytest

QUICKSTART = ("plan", "--gin_file=gin/run/quickstart.gin")


def test_a_plan_for_simulated_devices_says_what_the_step_costs(t5lite):
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
    # Nothing is computed again, so the program has the products of the formula, loops included.
    assert plan["program_flops"] == pytest.approx(plan["model_flops"], rel=1e-3)
    # A float32 parameter and its two moments, most of them split in four.
    memory = plan["memory_bytes"]
    assert memory["optimizer"] == pytest.approx(2 * memory["params"], abs=8)
    assert plan["held_whole"] == []
    kinds = {(row["kind"], *row["axes"]) for row in plan["collectives"]}
    assert {("all-gather", "fsdp"), ("all-reduce", "tensor")} <= kinds
    # Of simulated devices nothing is known.
    assert plan["bound"] is None
    assert plan["fits"] is None
    assert plan["loops_not_read"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "plan needs --topology"),
        (["--topology=v9:2x2"], "--topology must be one of v4, v5e"),
        (["--topology=cpu:0"], "--topology cpu:N needs a number of devices, got 'cpu:0'"),
        (["--topology=v5e:16x16x16"], "--topology v5e needs 2 sizes with x between them, 256"),
        (["--topology=v5p:0x4x4"], "--topology v5p needs 3 sizes with x between them, 8,960"),
        (["--topology=cpu:8", "--gin.Mesh.tensor=16"], "Mesh must use all 8 devices"),
        (["--topology=cpu:8", "--gin.Mesh.tensor=8"], "its axis 'heads' must be divisible"),
        (["--topology=cpu:8", "--suggest"], "--suggest needs devices of which it is known"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_on_one_line(flags, message, t5lite):
    status, _, err = t5lite(*QUICKSTART, *flags)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
