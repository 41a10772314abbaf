"""`--parameters` of commands that read a checkpoint with a moving average."""

import json

import numpy as np
import pytest

from t5lite.training.checkpoint_names import open_checkpoint
from t5lite.training.lazy_checkpoints import stored_params
from tests import small


@pytest.mark.proof
def test_commands_read_the_average_or_the_trained_values(command, tmp_path):
    run = tmp_path / "run"
    code, _, err = command(
        "train",
        *small.QUICKSTART,
        f"--gin.MODEL_DIR={run}",
        "--gin.STEPS=3",
        "--gin.train.show_examples=0",
        "--gin.train.moving_average=@MovingAverage()",
        "--gin.evaluate.split=validation[:4]",
    )
    assert code == 0, err
    checkpoint, step = open_checkpoint(str(run))
    losses = {}
    arrays = {}
    for which in (None, "average", "trained"):
        flags = [] if which is None else [f"--parameters={which}"]
        code, out, err = command("eval", f"--checkpoint={run}", "--json", *flags)
        assert code == 0, err
        (scores,) = json.loads(out)
        assert scores.get("parameters") == which
        losses[which] = scores["cross_entropy_nats_per_token"]
        folder = tmp_path / f"converted_{which}"
        code, _, err = command("convert", f"--input={run}", f"--output={folder}", *flags)
        assert code == 0, err
        converted = stored_params(*open_checkpoint(str(folder)))
        own = stored_params(checkpoint, step, which)
        for name, array in own.items():
            np.testing.assert_array_equal(array.load(), converted[name].load(), err_msg=name)
        arrays[which] = own["encoder/encoder_norm/scale"].load()
    assert losses[None] == losses["average"] != losses["trained"]
    assert np.any(arrays["average"] != arrays["trained"])
    # A converted checkpoint has one set of parameters.
    folder = tmp_path / "converted_None"
    code, _, err = command(
        "eval", f"--checkpoint={folder}:3", f"--gin_file={run}/config.gin", "--parameters=average"
    )
    assert code != 0
    assert "has no moving average, which --parameters=average names" in err
