"""Metrics of training steps: their means, and how fast they were."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5lite.losses.loss import mean_metrics
from t5lite.parallel.hardware import device_of
from t5lite.training.program import TrainProgram


class Throughput:
    """Times the steps between two reports. Evaluating and saving are not timed.

    Args:
        compile_seconds: reported once, with the first metrics.
    """

    def __init__(self, program: TrainProgram, *, compile_seconds: float) -> None:
        self._flops_per_step = program.flops_per_step
        device = device_of(jax.devices()[0].device_kind)
        self._peak_flops = None if device is None else device.flops * jax.device_count()
        self._loss = program.run.loss
        self._once = {"compile_seconds": compile_seconds}
        self.restart()

    def restart(self) -> None:
        """Restarts the clock."""
        self._started = time.perf_counter()
        self._data_wait_seconds = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock inside the context."""
        paused = time.perf_counter()
        yield
        self._started += time.perf_counter() - paused

    def next_batch(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns the next batch and counts the seconds that it took to arrive."""
        started = time.perf_counter()
        batch = next(batches)
        self._data_wait_seconds += time.perf_counter() - started
        return batch

    def metrics(self, sums: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Returns the metrics of the steps since the last call, and restarts the clock.

        Bad steps are counted; the loss is NaN if there are no others.

        Args:
            sums: of each of these steps, on the host.
        """
        seconds = time.perf_counter() - self._started
        tokens = math.fsum(float(s["tokens"] + s["input_tokens"]) for s in sums)
        flops_per_second = self._flops_per_step * len(sums) / seconds
        good = [s for s in sums if not s.get("bad_steps")]
        none = {"loss_nats_per_token": math.nan, "target_tokens": 0.0}
        counts = {"bad_steps": float(len(sums) - len(good))} if "bad_steps" in sums[0] else {}
        metrics = {
            **(mean_metrics(self._loss, good) if good else none),
            **counts,
            "learning_rate": float(sums[-1]["learning_rate"]),
            "gradient_norm": float(sums[-1]["gradient_norm"]),
            "tokens_per_second": tokens / seconds,
            "step_seconds": seconds / len(sums),
            "data_wait_seconds": self._data_wait_seconds,
            "model_flops_per_second": flops_per_second,
            **self._once,
        }
        if "mean_rank" in sums[-1]:
            metrics["mean_rank"] = float(sums[-1]["mean_rank"])
        if self._peak_flops is not None:
            metrics["mfu_fraction"] = flops_per_second / self._peak_flops
        self._once = {}
        self.restart()
        return metrics
