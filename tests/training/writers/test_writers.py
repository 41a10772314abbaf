import csv
import dataclasses
import json
import logging
import math
import pathlib

import pytest

from t5lite.core.errors import UserError
from t5lite.core.run_directory import read_metrics
from t5lite.training.writers.json_lines import JsonLines
from t5lite.training.writers.tensorboard import TensorBoard
from t5lite.training.writers.weights_and_biases import WeightsAndBiases
from t5lite.training.writers.writer import RunInfo
from t5lite.training.writers.writers import Writers


@dataclasses.dataclass(frozen=True)
class Failing:
    """A view that fails when it is opened, at a write, or at the end."""

    at: str

    def open(self, info):
        self.write(0, "open", {})
        return self

    def write(self, step, split, metrics):
        if self.at in (split, str(step)):
            raise RuntimeError(f"failed at {self.at}")

    def close(self):
        if self.at == "close":
            raise OSError("failed at close")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Csv:
    """One row for each metric; a writer as a user would add it."""

    name: str = "metrics.csv"

    def open(self, info):
        return CsvFile(info, self.name)


class CsvFile:
    def __init__(self, info, name):
        self._file = (info.model_dir / name).open("a", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow([0, "host", "", info.environment["host"]])

    def write(self, step, split, metrics):
        self._rows.writerows([step, split, name, value] for name, value in metrics.items())

    def close(self):
        self._file.close()


def info(model_dir, **changes):
    choices = {
        "first_step": 0,
        "is_new": True,
        "config_text": "# all\n",
        "environment": {"host": "h"},
    }
    return RunInfo(model_dir=model_dir, **{**choices, **changes})


@pytest.mark.parametrize("at", ["open", "train", "close"])
def test_a_failing_view_never_stops_the_run(at, tmp_path, caplog):
    writers = Writers([Failing(at), JsonLines(), Csv()], info(tmp_path))
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            writers.write(step, "train", {"loss": float(step)})
        writers.close()
    assert [m["loss"] for m in read_metrics(tmp_path)] == [1.0, 2.0]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == [
        "1,train,loss,1.0",
        "2,train,loss,2.0",
    ]
    if at != "open":
        assert [m for m in caplog.messages if "Failing failed and writes nothing more" in m]


def test_a_failing_record_does_stop_the_run(tmp_path):
    writers = Writers([JsonLines(), TensorBoard()], info(tmp_path))
    writers._records[0]._file.close()
    with pytest.raises(ValueError, match="closed file"):
        writers.write(1, "train", {"loss": 1.0})
    writers.close()


def test_numbers_that_are_not_finite_are_null_in_the_record(tmp_path):
    writers = Writers([JsonLines()], info(tmp_path))
    writers.write(1, "train", {"loss": math.nan, "rate": 0.5})
    writers.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "split": "train", "loss": None, "rate": 0.5}


def test_the_record_of_another_run_is_kept_beside(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 9, "split": "train"}\n')
    Writers([JsonLines()], info(tmp_path)).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert read_metrics(tmp_path) == []
    assert "9" in (tmp_path / "metrics.jsonl.old").read_text()


def test_no_record_that_was_kept_is_overwritten(tmp_path):
    for step in range(1, 5):
        writers = Writers([JsonLines()], info(tmp_path))
        writers.write(step, "train", {})
        writers.close()
    # An attempt that wrote nothing leaves nothing to keep.
    for _ in range(2):
        Writers([JsonLines()], info(tmp_path)).close()
    kept = {path.name: path.read_text() for path in tmp_path.glob("metrics.jsonl*")}
    assert {name: json.loads(text)["step"] for name, text in kept.items() if text} == {
        "metrics.jsonl.old": 1,
        "metrics.jsonl.old.2": 2,
        "metrics.jsonl.old.3": 3,
        "metrics.jsonl.old.4": 4,
    }
    assert kept["metrics.jsonl"] == ""


def shown_steps(folder):
    """Returns the steps of the metrics that TensorBoard shows for the event files of a folder."""
    from tensorboardX.proto import event_pb2

    steps = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        records = path.read_bytes()
        while records:
            # The length, its checksum, the event and its checksum.
            length = int.from_bytes(records[:8], "little")
            event = event_pb2.Event.FromString(records[12 : 12 + length])
            records = records[16 + length :]
            if event.session_log.status == event_pb2.SessionLog.START:
                # As TensorBoard's accumulator of events does.
                steps = [step for step in steps if step < event.step]
            steps += [event.step for value in event.summary.value if value.tag == "dev/loss"]
    return steps


def test_every_step_is_recorded_once_after_kills_before_and_after_a_checkpoint(
    tmp_path, monkeypatch
):
    """Attempts from the first step, from it again without a checkpoint, and from a checkpoint."""
    written = {}
    for attempt, (first_step, is_new) in enumerate([(0, True), (0, True), (2, False)]):
        monkeypatch.setattr("time.time", lambda attempt=attempt: float(attempt))
        writers = Writers(
            [JsonLines(), TensorBoard()], info(tmp_path, first_step=first_step, is_new=is_new)
        )
        # A new run evaluates its first step; a resumed one continues after its checkpoint.
        for step in range(first_step + (not is_new), first_step + 4):
            writers.write(step, "dev", {"loss": 1.0})
            written[step] = None
        writers.close()
    assert [m["step"] for m in read_metrics(tmp_path)] == list(written)
    assert shown_steps(tmp_path / "tensorboard") == list(written)


@pytest.mark.parametrize(
    ("writers", "message"),
    [
        ([TensorBoard()], r"train.writers must list @JsonLines\(\) once: metrics.jsonl is the rec"),
        ([JsonLines(), JsonLines()], r"must list @JsonLines\(\) once"),
        ([JsonLines(), "csv"], r"must be objects with a method open, such as .*, got 'csv'"),
        ([JsonLines(), Csv], "must be objects with a method open"),
    ],
)
def test_lists_that_are_no_writers_are_rejected(writers, message, make_run, tmp_path):
    with pytest.raises(UserError, match=message):
        make_run(tmp_path, writers=writers)


def test_an_unknown_mode_of_weights_and_biases_is_rejected():
    with pytest.raises(UserError, match="WeightsAndBiases.mode is unknown: got 'off'; did"):
        WeightsAndBiases(mode="off")


def test_weights_and_biases_that_is_not_installed_stops_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package wandb; install it with pip install"):
        Writers([JsonLines(), WeightsAndBiases()], info(tmp_path))


# Warnings of wandb's dependencies are not ours.
@pytest.mark.filterwarnings("default")
def test_weights_and_biases_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    choices = [JsonLines(), WeightsAndBiases(project="tests", mode="offline")]
    for first_step in (0, 1):
        about = info(tmp_path, first_step=first_step, is_new=first_step == 0)
        writers = Writers(choices, about)
        writers.write(first_step + 1, "train", {"loss": 0.25})
        assert len(writers._views) == 1
        writers.close()
    logs = list(pathlib.Path(tmp_path, "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(logs) == 2
    # A resumed run has the id of its first attempt.
    assert len({log.name for log in logs}) == 1
    assert b"train/loss" in logs[0].read_bytes()
    assert b"# all" in logs[0].read_bytes()
