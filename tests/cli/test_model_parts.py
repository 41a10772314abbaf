"""Parts of a model from outside the package, through the commands."""

import json

import pytest

from t5lite.core.run_directory import read_metrics
from tests import small


@pytest.mark.proof
def test_an_attention_function_and_an_adapter_from_outside_train_and_decode(t5lite, tmp_path):
    model_dir = tmp_path / "run"
    code, _, err = t5lite(
        "train",
        *small.QUICKSTART,
        "--gin.STEPS=6",
        f"--gin.MODEL_DIR={model_dir}",
        "--gin.train.show_examples=0",
        "--gin.T5Config.attention=tests.models.chunked_attention:attention",
        "--gin.T5Config.decoder_windows=(8, None)",
        "--gin.T5Config.adapters=[@tests.models.low_rank:LowRank()]",
        "--gin.tests.models.low_rank:LowRank.rank=3",
    )
    assert code == 0, err
    losses = [m["loss_nats_per_token"] for m in read_metrics(model_dir) if m["split"] == "train"]
    assert losses[-1] < losses[0]

    requests, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text(json.dumps({"inputs": "The value of an expression"}) + "\n")
    code, _, err = t5lite(
        "infer",
        f"--checkpoint={model_dir}",
        f"--input={requests}",
        f"--output={results}",
        "--mode=predict",
        "--gin.infer.targets_length=8",
    )
    assert code == 0, err
    assert json.loads(results.read_text())["score"] < 0
