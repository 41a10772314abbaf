"""Names from one's own code, from the flags of `train` to the config.gin that `eval` reads."""

import json
import sys

import pytest

from tests import small

OWN_LOSS = """
from t5lite.losses.cross_entropy import CrossEntropy

def gentle(z_loss: float) -> CrossEntropy:
    return CrossEntropy(z_loss=z_loss)
"""


@pytest.mark.proof
def test_eval_imports_the_loss_of_ones_own_code_by_config_gin(
    command, tmp_path, monkeypatch, request
):
    (tmp_path / "own_losses_of_a_test.py").write_text(OWN_LOSS)
    request.addfinalizer(lambda: sys.modules.pop("own_losses_of_a_test", None))
    monkeypatch.chdir(tmp_path)
    code, out, err = command(
        "train",
        *small.QUICKSTART,
        "--gin.STEPS=2",
        "--gin.MODEL_DIR=run",
        "--gin.train.eval_split=validation[:3]",
        "--gin.train.show_examples=0",
        "--gin.train.loss=@own_losses_of_a_test:gentle()",
        "--gin.own_losses_of_a_test:gentle.z_loss=0.25",
    )
    assert code == 0, err
    assert "t5lite eval --checkpoint=run" in out
    config = (tmp_path / "run" / "config.gin").read_text()
    assert "own_losses_of_a_test:gentle.z_loss = 0.25" in config
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    trained = next(m for m in lines if m["split"] != "train" and m["step"] == 2)
    code, out, err = command("eval", "--checkpoint=run", "--json")
    assert code == 0, err
    (scores,) = json.loads(out)
    assert abs(scores["loss_nats_per_token"] - trained["loss_nats_per_token"]) < 1e-5
    # The z-loss of 0.25 is part of it.
    assert scores["loss_nats_per_token"] > scores["cross_entropy_nats_per_token"] + 1
