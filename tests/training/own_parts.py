"""A loss, a writer and a schedule as a user would write them, outside of the package."""

import csv
import dataclasses

import jax
import jax.numpy as jnp

from t5lite.core.batches import targets_of
from t5lite.core.numbers import Number, numeric
from t5lite.losses.cross_entropy import CrossEntropy


@numeric
class FocalLoss:
    """Cross-entropy that weighs each token by (1 - probability)^gamma.

    Source: Lin et al., "Focal Loss for Dense Object Detection", equation 4.
    """

    gamma: Number = 2.0

    def __call__(self, apply, params, batch, key=None, *, by_row=False):
        targets, weights = targets_of(batch)
        logits = apply(params, batch, key)
        standard = CrossEntropy(z_loss=0.0).sums(logits, targets, weights, by_row=by_row)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        picked = jnp.take_along_axis(log_probs, targets[..., None], axis=2)[..., 0]
        # The gradient of 0^gamma is not defined.
        focus = jnp.maximum(1.0 - jnp.exp(picked), 1e-6) ** self.gamma
        axis = 1 if by_row else None
        return {
            **standard,
            "loss": -jnp.sum(focus * picked * weights, axis),
            "focus": jnp.sum(focus * weights, axis),
        }

    def means(self, sums):
        return {"focus_fraction": sums["focus"] / sums["tokens"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Csv:
    """One row for each metric."""

    name: str = "metrics.csv"

    def open(self, info):
        return CsvFile(info, self.name)


class CsvFile:
    """An open file of `Csv`."""

    def __init__(self, info, name):
        self._file = (info.model_dir / name).open("a", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow([info.first_step, "command", "", info.environment["command"][0]])

    def write(self, step, split, metrics):
        self._rows.writerows([step, split, name, value] for name, value in metrics.items())

    def close(self):
        self._file.close()


def triangle(step):
    """Rises for five steps and falls again."""
    return jnp.where(step < 5, step + 1, 10 - step) / 1000.0
