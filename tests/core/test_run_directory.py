"""What a run's folder tells."""

import json

import pytest

from t5lite.core.errors import Diverged, Unavailable, UserError
from t5lite.core.run_directory import (
    ATTEMPTS,
    Preempted,
    append_record,
    attempt,
    is_locked,
    locked,
    outcomes,
    read_attempts,
    utc_now,
    write_result,
)


def test_attempts_are_counted_by_outcome(tmp_path):
    assert not any(outcomes(tmp_path).values())
    with attempt(tmp_path, ["train", "--gin.STEPS=3"]):
        assert is_locked(tmp_path)
        with pytest.raises(UserError, match=f"{tmp_path} is being trained by process \\d+ on"):
            locked(tmp_path).__enter__()
    assert not is_locked(tmp_path)
    errors = (
        Preempted(3),
        Diverged("loss is nan"),
        UserError("no such vocabulary"),
        Unavailable("no room"),
        OSError(28, "No space left on device"),
        FileNotFoundError("nowhere"),
        KeyboardInterrupt(),
    )
    for error in errors:
        with pytest.raises(type(error)), attempt(tmp_path, ["train"]):
            raise error
    # One that was killed while it wrote its end.
    with (tmp_path / ATTEMPTS).open("a") as file:
        file.write(json.dumps({"attempt": 9, "began": utc_now()}) + '\n{"attempt": 9, "outc')
    with attempt(tmp_path, ["train"]):
        pass
    assert outcomes(tmp_path) == {
        "finished": 2,
        "preempted": 1,
        "unavailable": 2,
        "stalled": 0,
        "rejected": 2,
        "failed": 1,
        "killed": 2,
    }
    lines = read_attempts(tmp_path)
    assert lines[0]["command"] == ["train", "--gin.STEPS=3"]
    assert [line["error"] for line in lines if "error" in line] == [
        "loss is nan",
        "no such vocabulary",
        "no room",
        "[Errno 28] No space left on device",
        "nowhere",
    ]
    assert lines[-1]["attempt"] == 10


def test_a_result_has_the_latest_scores(tmp_path):
    for step in (2, 4):
        append_record(tmp_path / "metrics.jsonl", step=step, split="train", loss=1.0)
        append_record(tmp_path / "metrics.jsonl", step=step, split="validation", loss=step / 2)
    write_result(tmp_path, 4)
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "step": 4,
        "ended": "all steps",
        "scores": {"validation": {"step": 4, "loss": 2.0}},
    }
