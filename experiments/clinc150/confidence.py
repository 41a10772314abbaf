"""Out-of-scope texts found by the confidence of a model, calibrated on the validation texts.

    python experiments/clinc150/confidence.py --run=runs/clinc150/text:best \
        --data=runs/clinc150/full --results=FILE

The confidence of a text is the largest probability of an intent, after the logits of all intents
are divided by a temperature. The temperature gives validation texts in scope the lowest
cross-entropy; thresholds are chosen on validation texts too. Prints one JSON object and appends it
to --results.
"""

import functools
import json
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from t5lite.cli.run_files import saved_vocabulary
from t5lite.models.description import model_of
from t5lite.objectives.prefixed import framed
from t5lite.training.checkpoint_names import find_checkpoint, open_checkpoint
from t5lite.training.lazy_checkpoints import stored_params

RUN = flags.DEFINE_string("run", None, "A MODEL_DIR, or MODEL_DIR:best.", required=True)
DATA = flags.DEFINE_string("data", None, "Folder of the splits.", required=True)
RESULTS = flags.DEFINE_string("results", None, "Where results are appended.", required=True)

# No text has more words.
LENGTH = 40
ROWS = 100
BINS = 15
# The share of validation texts in scope that the second threshold keeps.
KEPT = 0.95


class Scorer:
    """A trained model: from texts to the logits of the intents."""

    def __init__(self, run, intents):
        checkpoint = find_checkpoint(pathlib.Path(run))
        checkpoints, step = open_checkpoint(checkpoint)
        about = checkpoints.about(step)
        self.model = model_of(about, checkpoint)
        self.vocabulary = saved_vocabulary(about, pathlib.Path(checkpoint).parents[1])
        loaded = {n: jnp.asarray(a.load()) for n, a in stored_params(checkpoints, step).items()}
        params = flax.traverse_util.unflatten_dict(loaded, sep="/")
        self._apply = jax.jit(functools.partial(self.model.apply, {"params": params}))
        # Intents are single words; a classifier has them in alphabetical order.
        self._columns = np.arange(len(intents))
        if self.model.has_decoder:
            pieces = [self.vocabulary.encode(intent) for intent in intents]
            assert all(len(piece) == 1 for piece in pieces), "an intent is not one piece"
            self._columns = np.concatenate(pieces)

    def logits(self, texts):
        """Returns the logits of the intents, [texts, intents]."""
        parts = [self._of_batch(texts[at : at + ROWS]) for at in range(0, len(texts), ROWS)]
        return np.concatenate(parts).astype(np.float64)

    def _of_batch(self, texts):
        names = ("encoder_input_tokens", "encoder_segment_ids")
        batch = {name: np.zeros((ROWS, LENGTH), np.int32) for name in names}
        for row, text in enumerate(texts):
            ids = framed(self.vocabulary.encode(text), LENGTH, self.vocabulary)
            batch["encoder_input_tokens"][row, : len(ids)] = ids
            batch["encoder_segment_ids"][row, : len(ids)] = 1
        if self.model.has_decoder:
            start = self.model.config.start_token
            batch["decoder_input_tokens"] = np.full((ROWS, 1), start, np.int32)
            batch["decoder_segment_ids"] = np.ones((ROWS, 1), np.int32)
        return np.asarray(self._apply(batch))[: len(texts), 0][:, self._columns]


def probabilities(logits, temperature=1.0):
    """Returns the softmax of logits over a temperature."""
    shifted = (logits - logits.max(-1, keepdims=True)) / temperature
    return np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)


def cross_entropy(logits, labels, temperature):
    """Returns the mean cross-entropy in nats."""
    found = probabilities(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(found).mean())


def calibration_error(probability, labels):
    """Returns the expected calibration error: bins of equal width of the confidence."""
    confidence = probability.max(-1)
    right = probability.argmax(-1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(BINS)]
    return float(sum(gaps) / len(labels))


def decisions(threshold, inside, labels, outside):
    """Returns accuracy in scope and recall out of scope when lower confidences are rejected."""
    kept = inside.max(-1) >= threshold
    right = (inside.argmax(-1) == labels) & kept
    return {
        "threshold": round(float(threshold), 4),
        "in_scope_accuracy": round(float(right.mean()), 4),
        "in_scope_kept": round(float(kept.mean()), 4),
        "oos_recall": round(float((outside.max(-1) < threshold).mean()), 4),
    }


def best_threshold(inside, labels, outside):
    """Returns the threshold with the most right decisions, where out of scope is one class."""
    confidence = inside.max(-1)
    right = np.sort(confidence[inside.argmax(-1) == labels])
    rejected = np.sort(outside.max(-1))
    thresholds = np.unique(np.concatenate([[0.0], confidence, rejected]))
    counts = len(right) - np.searchsorted(right, thresholds) + np.searchsorted(rejected, thresholds)
    return thresholds[counts.argmax()]


def area_under_curve(inside, outside):
    """Returns the chance that a text in scope has the higher confidence; equal ones count half."""
    low = np.sort(outside.max(-1))
    confidence = inside.max(-1)
    below = np.searchsorted(low, confidence, "left") + np.searchsorted(low, confidence, "right")
    return float(below.mean() / 2 / len(low))


def main(_):
    """Calibrates on the validation texts and evaluates the test texts."""
    folder = pathlib.Path(DATA.value)
    splits = ("validation", "validation_oos", "test", "test_oos")
    records = {split: list(map(json.loads, (folder / f"{split}.jsonl").open())) for split in splits}
    intents = sorted({record["intent"] for record in records["validation"]})
    scorer = Scorer(RUN.value, intents)
    logits = {name: scorer.logits([r["text"] for r in some]) for name, some in records.items()}
    labels = {
        name: np.array([intents.index(record["intent"]) for record in records[name]])
        for name in ("validation", "test")
    }
    temperatures = np.geomspace(0.1, 10, 201)
    values = [cross_entropy(logits["validation"], labels["validation"], t) for t in temperatures]
    temperature = float(temperatures[int(np.argmin(values))])
    found = {name: probabilities(some, temperature) for name, some in logits.items()}
    validation = (found["validation"], labels["validation"], found["validation_oos"])
    test = (found["test"], labels["test"], found["test_oos"])
    line = {
        "run": RUN.value,
        "temperature": round(temperature, 3),
        "test_accuracy": decisions(0.0, *test)["in_scope_accuracy"],
        "validation_accuracy": decisions(0.0, *validation)["in_scope_accuracy"],
        "test_calibration_error": {
            "before": round(calibration_error(probabilities(logits["test"]), labels["test"]), 4),
            "after": round(calibration_error(found["test"], labels["test"]), 4),
        },
        "test_area_under_curve": round(area_under_curve(found["test"], found["test_oos"]), 4),
        "best_on_validation": decisions(best_threshold(*validation), *test),
        "keeps_95_percent_of_validation": decisions(
            np.quantile(found["validation"].max(-1), 1 - KEPT), *test
        ),
    }
    print(json.dumps(line), flush=True)
    with pathlib.Path(RESULTS.value).open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    app.run(main)
