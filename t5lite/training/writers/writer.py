"""The protocol of writers."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What every writer receives once, when it is opened.

    Args:
        model_dir: the directory of the run.
        first_step: the step from which the run continues. Metrics of later steps, from an attempt
            that was interrupted, are about to be written again.
        is_new: whether the run has no checkpoint.
        config_text: the resolved configuration as a gin file.
        environment: versions, devices, host and command, as plain data for JSON.
    """

    model_dir: pathlib.Path
    first_step: int
    is_new: bool
    config_text: str
    environment: Mapping[str, Any]


@runtime_checkable
class MetricSink(Protocol):
    """An open writer of one run, in the first process only."""

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step; `split` is "train" or the name of an evaluation split."""

    def close(self) -> None:
        """Writes what is buffered and releases all resources."""


@runtime_checkable
class Writer(Protocol):
    """What `train.writers` lists: a frozen dataclass with the choices of a user."""

    def open(self, info: RunInfo) -> MetricSink:
        """Opens the writer for one run.

        Raises:
            UserError: if something that the writer needs is missing; the run does not start then.
        """
