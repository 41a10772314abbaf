"""Checks of steps on the host, once their sums are fetched: bad steps, good checkpoints."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from t5lite.core.run_directory import append_record
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.feed import Feed, UsedBatch
from t5lite.training.good_checkpoints import add_good
from t5lite.training.restore import RunStart
from t5lite.training.run import Run

BAD_STEPS = "bad_steps.jsonl"


class Divergence(Exception):
    """A run has left its path, and may return to a good checkpoint.

    Args:
        reason: names the step.
        step: the latest step.
        batch: the number of its batch.
        start: from which the steps were taken.
    """

    def __init__(self, reason: str, *, step: int, batch: int, start: RunStart) -> None:
        super().__init__(reason)
        self.reason = reason
        self.step = step
        self.batch = batch
        self.start = start


class StepCheck:
    """Checks the steps of a run from one start, in order; equal in all processes.

    Args:
        log: prints one line for each bad step.
    """

    def __init__(
        self, run: Run, start: RunStart, feed: Feed, *, log: Callable[[str], None]
    ) -> None:
        self._rules = run.bad_steps
        self._start = start
        self._feed = feed
        self._log = log
        self._model_dir = pathlib.Path(run.model_dir)
        # Checkpoints whose parameters are not proved yet.
        self._unproved = [start.step]
        self._latest_is_bad = False
        self._any_good = False
        self._last_step = run.total_steps

    def check(self, last_step: int, sums: Sequence[Mapping[str, Any]]) -> None:
        """Checks the latest steps: logs bad ones, and records which checkpoints proved good.

        Args:
            last_step: the latest of them.
            sums: of each of them, on the host.

        Raises:
            Divergence: if the run must return to an earlier checkpoint.
        """
        first = last_step - len(sums) + 1
        for step, (of_step, batch) in enumerate(
            zip(sums, self._feed.take_used(), strict=True), start=first
        ):
            if self._rules is None:
                self._check_finite(step, of_step, batch)
            else:
                self._check_rules(step, of_step, batch)

    def _check_finite(self, step: int, sums: Mapping[str, Any], batch: UsedBatch) -> None:
        # The gradient too, because one that is not finite makes the next loss so.
        if not math.isfinite(float(sums["loss"]) + float(sums["gradient_norm"])):
            raise self._divergence("loss or gradient is not finite", step, batch)
        self._prove()

    def _check_rules(self, step: int, sums: Mapping[str, Any], batch: UsedBatch) -> None:
        assert self._rules is not None
        self._latest_is_bad = bool(sums["bad_steps"])
        rise = float(sums["loss_rise"])
        limit = self._rules.max_loss_rise
        if self._latest_is_bad:
            self._record_bad(step, sums, batch)
        norm = float(sums["gradient_norm"])
        is_finite = math.isfinite(float(sums["step_loss"]) + norm)
        # Also if only the update is bad: it says nothing of the parameters. A checkpoint from which
        # the loss is about to leave its band is none to return to.
        if is_finite and norm <= float(sums["norm_bound"]) and rise <= limit / 2:
            self._prove()
        self._any_good |= not self._latest_is_bad
        in_a_row = int(sums["bad_in_a_row"])
        if in_a_row >= self._rules.max_in_a_row:
            reason = f"{in_a_row} bad steps in a row, the latest with {_numbers(sums)},"
            raise self._divergence(reason, step, batch)
        if rise > limit:
            reason = (
                f"the mean of recent losses is {rise:.3g} nats per token over its lowest value, "
                f"more than BadSteps.max_loss_rise ({limit:g}),"
            )
            raise self._divergence(reason, step, batch)

    def saving(self, step: int, scores: Mapping[str, float] | None) -> None:
        """Records that a checkpoint of `step` is saved now.

        Args:
            scores: of an evaluation of its parameters, if there was one.

        Raises:
            Divergence: if the latest step was bad, and the scores are not finite either or the run
                ends without any good step.
        """
        latest = UsedBatch(self._feed.number, ())
        if self._latest_is_bad and step == self._last_step and not self._any_good:
            raise self._divergence("every step is bad", step, latest)
        if self._latest_is_bad and scores is not None and not _is_finite(scores):
            reason = "the latest step is bad and the evaluation not finite"
            raise self._divergence(reason, step, latest)
        self._unproved.append(step)
        if scores is not None:
            self.evaluated(scores)

    def evaluated(self, scores: Mapping[str, float]) -> None:
        """Records the evaluation of the checkpoint that is saved now, or of the start of a run."""
        if _is_finite(scores):
            self._prove()

    def _prove(self) -> None:
        for step in self._unproved:
            if jax.process_index() == 0:
                add_good(self._model_dir / FOLDER, step)
        self._unproved.clear()

    def _record_bad(self, step: int, sums: Mapping[str, Any], batch: UsedBatch) -> None:
        # All processes gather the cursors.
        rows = self._feed.rows_of(batch)
        if jax.process_index() == 0:
            values = {
                "loss_nats_per_token": float(sums["step_loss"]),
                **{n: float(sums[n]) for n in ("gradient_norm", "norm_bound", "update_norm")},
            }
            record = {name: x if math.isfinite(x) else None for name, x in values.items()}
            append_record(
                self._model_dir / BAD_STEPS, step=step, batch=batch.number, **record, rows=rows
            )
        self._log(
            f"step {step} is bad and changes no parameters: {_numbers(sums)}; batch {batch.number} "
            f"and its cursors are in {BAD_STEPS}"
        )

    def _divergence(self, reason: str, step: int, batch: UsedBatch) -> Divergence:
        return Divergence(
            f"{reason} at step {step}", step=step, batch=batch.number, start=self._start
        )


def _is_finite(scores: Mapping[str, float]) -> bool:
    return math.isfinite(scores["loss_nats_per_token"])


def _numbers(sums: Mapping[str, Any]) -> str:
    bound = float(sums["norm_bound"])
    suffix = f" (bound {bound:.4g})" if math.isfinite(bound) else ""
    return (
        f"loss {float(sums['step_loss']):.4g}, gradient norm "
        f"{float(sums['gradient_norm']):.4g}{suffix}, update norm {float(sums['update_norm']):.4g}"
    )
