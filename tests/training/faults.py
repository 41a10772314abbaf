"""Batches that are bad by the mark in their first target, and the loss that the mark ruins.

Runs with such faults share one program.
"""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Key

from t5lite.core.batches import Batch
from t5lite.core.numbers import numeric
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import Apply, LossSums
from t5lite.training import determinism, feed, loop
from t5lite.training.program import TrainProgram
from t5lite.training.run import Run
from t5lite.training.state import TrainState
from t5lite.training.step import compile_once
from tests import small

# Ids of sentinels that no example of the tests is long enough for.
NOT_A_NUMBER = 260
SPIKE = 261
# The loss of a spike, and so its gradient, is so many times that of another batch.
SPIKE_FACTOR = 1e4


@numeric
class MarkedLoss:
    """Cross-entropy, ruined for batches that are marked."""

    plain: CrossEntropy = CrossEntropy()

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums of the cross-entropy."""
        sums = self.plain(apply, params, batch, key, by_row=by_row)
        mark = batch["decoder_target_tokens"][0, 0]
        factor = jnp.where(mark == SPIKE, SPIKE_FACTOR, 1.0)
        factor = jnp.where(mark == NOT_A_NUMBER, jnp.nan, factor)
        return {**sums, "loss": sums["loss"] * factor}

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns no further metrics."""
        del sums
        return {}


def mark_batches(monkeypatch: Any, marks: Mapping[int, int], *, of: Iterable[str] = ("",)) -> None:
    """Marks batches by their numbers, in runs whose MODEL_DIR ends in one of the names."""
    plain_init = feed.Feed.__init__
    plain_next = feed.Feed.__next__
    names = tuple(of)

    def init(self: Any, run: Any, *arguments: Any, **options: Any) -> None:
        plain_init(self, run, *arguments, **options)
        self.is_marked = run.model_dir.endswith(names)

    def following(self: Any) -> dict[str, np.ndarray]:
        batch = plain_next(self)
        if self.is_marked and self.number in marks:
            batch = {name: np.array(x) for name, x in batch.items()}
            batch["decoder_target_tokens"][0, 0] = marks[self.number]
        return batch

    monkeypatch.setattr(feed.Feed, "__init__", init)
    monkeypatch.setattr(feed.Feed, "__next__", following)


_programs: dict[str, Any] = {}


def _made_once(run: Run) -> Any:
    """Program, compiled step and evaluation of all runs that differ from `run` in numbers only."""
    key = str(jax.tree.structure(run.hyperparameters))
    if key not in _programs:
        program = small.program_of(run)
        _programs[key] = program, compile_once(program, print)(), small.evaluate_of(run)
    return _programs[key]


def train_alike(run: Run) -> TrainState:
    """Trains as `small.train` does, without another trace."""
    program, compiled, evaluate = _made_once(run)
    pathlib.Path(run.model_dir).mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_once", lambda program, log: lambda: compiled)
        return loop.train(program.of(run), evaluate=evaluate, config_text="")


def verify_alike(run: Run, steps: int) -> str:
    """Verifies determinism without another trace."""
    program, compiled, _ = _made_once(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(determinism, "compile_once", lambda program, log: lambda: compiled)
        return determinism.verify_determinism(program.of(run), steps)


def program_alike(run: Run) -> TrainProgram:
    """The program of a run, without another trace."""
    program: TrainProgram = _made_once(run)[0].of(run)
    return program
