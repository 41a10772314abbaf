"""All writers of a run together: the record, which must not fail, and views, which may."""

import contextlib
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t5lite.core.errors import UserError
from t5lite.training.environment import environment_of
from t5lite.training.restore import RunStart
from t5lite.training.run import Run
from t5lite.training.writers.json_lines import JsonLines
from t5lite.training.writers.writer import MetricSink, RunInfo, Writer

log = logging.getLogger(__name__)


class Writers:
    """The open writers of a run; close it.

    Args:
        writers: of which `JsonLines` is the record. An error of any other is logged once, and that
            writer is dropped.

    Raises:
        UserError: if a writer misses something that it needs.
    """

    def __init__(self, writers: Sequence[Writer], info: RunInfo) -> None:
        self._records: list[MetricSink] = []
        self._views: dict[str, MetricSink] = {}
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for writer in writers:
                if isinstance(writer, JsonLines):
                    self._records.append(writer.open(info))
                    continue
                name = type(writer).__name__
                with self._dropped_on_error(name):
                    self._views[name] = writer.open(info)
            stack.pop_all()

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step to all writers, the record first."""
        for record in self._records:
            record.write(step, split, metrics)
        for name, view in list(self._views.items()):
            with self._dropped_on_error(name):
                view.write(step, split, metrics)

    def close(self) -> None:
        """Closes all writers."""
        for record in self._records:
            record.close()
        for name, view in list(self._views.items()):
            with self._dropped_on_error(name):
                view.close()

    @contextlib.contextmanager
    def _dropped_on_error(self, name: str) -> Any:
        try:
            yield
        except UserError:
            raise
        # Any error: writers come from other packages and from users.
        except Exception as error:
            view = self._views.pop(name, None)
            if view is not None:
                with contextlib.suppress(Exception):
                    view.close()
            log.warning("%s failed and writes nothing more: %s", name, error)


def open_writers(run: Run, start: RunStart, *, config_text: str, command: Sequence[str]) -> Writers:
    """Returns the writers of a run in this process; only the first process writes.

    Raises:
        UserError: if a writer misses something, or the evaluation split has the name under which
            training is recorded.
    """
    if run.eval_split == "train":
        raise UserError(
            "train.eval_split 'train' would mix scores with the metrics of training; name it "
            "'train[:100%]'"
        )
    info = RunInfo(
        model_dir=pathlib.Path(run.model_dir),
        first_step=start.step,
        is_new=start.is_new,
        config_text=config_text,
        environment=environment_of(command),
    )
    return Writers(run.writers if jax.process_index() == 0 else (), info)
