"""What t5lite computes with a trained model, to compare the clients with."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import models
import numpy as np

from t5lite.cli.run_files import saved_vocabulary
from t5lite.models.description import model_of
from t5lite.objectives.prefixed import framed
from t5lite.training.checkpoint_names import find_checkpoint, open_checkpoint
from t5lite.training.lazy_checkpoints import stored_params

INPUTS_LENGTH = 32
TARGETS_LENGTH = 16


class Ours:
    """A trained model and its vocabulary, run in float32; rows are padded, so it compiles once."""

    def __init__(self, run):
        checkpoint = find_checkpoint(run)
        checkpoints, step = open_checkpoint(checkpoint)
        about = checkpoints.about(step)
        self.run = run
        self.model = model_of(about, checkpoint)
        self.vocabulary = saved_vocabulary(about, run)
        loaded = {n: jnp.asarray(a.load()) for n, a in stored_params(checkpoints, step).items()}
        self.params = flax.traverse_util.unflatten_dict(loaded, sep="/")
        self.apply = jax.jit(self.model.apply, static_argnames="method")

    def ids(self, text):
        """Returns the ids of an input, with those that the vocabulary puts around it."""
        return framed(self.vocabulary.encode(text), INPUTS_LENGTH, self.vocabulary)

    def logits(self, ids):
        """Returns the logits of a model without targets, [tokens, classes or vocabulary]."""
        return self._apply(ids, "__call__")

    def states(self, ids):
        """Returns the output of the encoder, [tokens, width]."""
        return self._apply(ids, "encode")

    def _apply(self, ids, method):
        count = len(ids)
        padding = (0, INPUTS_LENGTH - count)
        batch = {
            "encoder_input_tokens": np.pad(ids, padding)[None].astype(np.int32),
            "encoder_segment_ids": np.pad(np.ones(count, np.int32), padding)[None],
        }
        made = self.apply({"params": self.params}, batch, method=method)
        return np.asarray(made[0, :count], np.float64)


def log_softmax(logits):
    """Returns logarithms of probabilities."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def infer(run, records):
    """Returns the records with t5lite's predictions and the scores of their targets."""
    predicted = _infer(run, records, "predict")
    scored = _infer(run, records, "score")
    return [
        {**record, "prediction": one["prediction"], "score": other["score"]}
        for record, one, other in zip(records, predicted, scored, strict=True)
    ]


def _infer(run, records, mode):
    source = run / f"{mode}.in.jsonl"
    output = run / f"{mode}.out.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    output.unlink(missing_ok=True)
    models.t5lite(
        "infer",
        f"--checkpoint={run}",
        f"--input={source}",
        f"--output={output}",
        f"--mode={mode}",
        f"--gin.infer.inputs_length={INPUTS_LENGTH}",
        f"--gin.infer.targets_length={TARGETS_LENGTH}",
    )
    return [json.loads(line) for line in output.open()]
