"""Tables and plots over runs."""

import csv
import html.parser
import io
import json

import pytest

from t5lite.core.errors import UserError
from t5lite.core.run_directory import append_record, locked, utc_now, write_result
from t5lite.launching.launch import Launch, read, save
from t5lite.reporting import plots, report


@pytest.fixture
def launch(tmp_path):
    """Four rates with two seeds; the third rate is best, one trial waits, one was killed."""
    launch = Launch(
        folder=str(tmp_path / "lr"),
        command="train",
        flags=["--gin_file=a.gin"],
        engine="local",
        working_dir=str(tmp_path),
        space={"AdamW.learning_rate": "log(1e-4, 1e-1, 4)", "train.seed": "range(2)"},
        objective="loss",
    )
    save(launch)
    study = launch.study()
    for number, row in enumerate(launch.rows[:-1]):
        study.take(number)
        folder = launch.model_dir(number)
        folder.mkdir()
        value = {1e-4: 3.0, 1e-3: 2.0, 1e-2: 1.0, 1e-1: 4.0}[row["AdamW.learning_rate"]]
        value += 0.1 * row["train.seed"]
        append_record(folder / "attempts.jsonl", attempt=1, began="", command=["t5lite", "train"])
        if number:
            append_record(folder / "attempts.jsonl", attempt=1, outcome="finished", seconds=36.0)
            write_result(folder, 20)
        for step in (10, 20):
            append_record(
                folder / "metrics.jsonl",
                step=step,
                split="train",
                loss=0.0,
                step_seconds=0.9,
                tokens_per_second=100.0 * step,
            )
            append_record(folder / "metrics.jsonl", step=step, split="dev", loss=value + 10 / step)
        study.tell(number, "complete", value + 0.5)
    return launch


def test_a_table_has_the_best_first(launch):
    found = report.collect([launch.folder], objective=None, maximize=None)
    titles, *rows = csv.reader(io.StringIO(report.as_csv(found)))
    assert titles[:5] == ["run", "AdamW.learning_rate", "train.seed", "loss", "step"]
    assert [row[0] for row in rows] == ["4", "5", "2", "3", "1", "6", "0", "7"]
    assert rows[0][1:5] == ["0.01", "0", "1.5", "20"]
    best = dict(zip(titles, rows[0], strict=True))
    # 20 steps of 0.9 seconds in 36.
    assert float(best["goodput_fraction"]) == 0.5
    assert float(best["hours"]) == 0.01
    assert best["tokens_per_second"] == "2000.0"
    killed = dict(zip(titles, rows[6], strict=True))
    assert (killed["failed"], killed["goodput_fraction"]) == ("1", "")
    assert rows[-1][3] == ""
    assert found.best.command.endswith(
        f"--gin.train.seed=0 --gin.MODEL_DIR={launch.folder}/trials/0004"
    )
    assert report.as_markdown(found).count("\n") == 10
    highest = report.collect([launch.folder], objective="dev/loss", maximize=True)
    assert highest.best.name == "6"


def test_what_has_not_done_all_its_steps_is_not_the_best(launch):
    # Its first score is better than any last one.
    folder = launch.model_dir(7)
    folder.mkdir()
    launch.study().take(7)
    append_record(
        folder / "attempts.jsonl", attempt=1, began=utc_now(), command=["t5lite", "train"]
    )
    append_record(folder / "metrics.jsonl", step=0, split="dev", loss=0.1)
    with locked(folder):
        found = report.collect([launch.folder], objective=None, maximize=None)
    assert found.best.name == "4"
    titles, *rows = csv.reader(io.StringIO(report.as_csv(found)))
    # The first one was killed before its end.
    assert [row[0] for row in rows] == ["4", "5", "2", "3", "1", "6", "7", "0"]
    going = dict(zip(titles, rows[-2], strict=True))
    assert (going["run"], going["failed"]) == ("7", "0")


def test_a_launch_can_be_moved(launch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "lr").rename(tmp_path / "elsewhere" / "lr")
    found = report.collect([str(moved)], objective=None, maximize=None)
    assert found.best.name == "4"
    assert found.best.command.endswith(f"--gin.MODEL_DIR={moved}/trials/0004")
    assert read(moved).study().best().number == 4


def test_runs_of_no_launch_are_compared(launch):
    folders = [str(launch.model_dir(number)) for number in (1, 4)]
    found = report.collect(folders, objective="loss", maximize=None)
    assert [run.name for run in found.runs] == folders
    assert found.best.command == "t5lite train"
    assert plots.figures(found, {}).keys() == {"curves"}


class Images(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.sources.append(dict(attrs)["src"])


def test_a_page_has_all_plots_within(launch, tmp_path):
    found = report.collect([launch.folder], objective=None, maximize=None)
    importance = launch.study().importance()
    assert importance["AdamW.learning_rate"] > importance["train.seed"]
    drawn = plots.figures(found, importance)
    assert list(drawn) == [
        *("curves", "by_AdamW.learning_rate", "by_train.seed", "parallel_coordinates"),
        "importance",
    ]
    curves = drawn["curves"].axes[0]
    # A line and a band for each rate; that of the last has one seed only.
    assert (len(curves.lines), len(curves.collections)) == (4, 3)
    best = curves.lines[0]
    assert best.get_label() == "learning_rate 0.01"
    assert best.get_ydata().tolist() == pytest.approx([2.05, 1.55])
    assert drawn["by_AdamW.learning_rate"].axes[0].get_xscale() == "log"
    plots.write(found, importance, tmp_path)
    page = Images()
    page.feed((tmp_path / "report.html").read_text())
    assert len(page.sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_reported_is_said(launch, tmp_path):
    with pytest.raises(UserError, match="is no run and no launch"):
        report.collect([str(tmp_path)], objective=None, maximize=None)
    with pytest.raises(UserError, match="no run has told 'bleu'; metrics that are there: loss"):
        report.collect([launch.folder], objective="bleu", maximize=None)
    # A line that is being written is no reason to fail.
    with (launch.model_dir(0) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30})[:-3])
    assert len(report.collect([launch.folder], objective=None, maximize=None).runs) == 8
