"""Tables and plots over runs."""

import csv
import dataclasses
import html.parser
import io
import itertools
import json

import pytest

from t5lite.core.errors import UserError
from t5lite.core.run_directory import (
    GOODPUT,
    OUTCOMES,
    append_record,
    locked,
    utc_now,
    write_result,
)
from t5lite.launching.launch import Launch
from t5lite.launching.launch_files import read_launch, save_launch
from t5lite.launching.open_study import open_study
from t5lite.reporting.goodput import KINDS
from t5lite.reporting.page import write_report
from t5lite.reporting.plots import report_figures
from t5lite.reporting.report import Report, ReportedRun, collect_runs
from t5lite.reporting.tables import csv_text, markdown_text


@pytest.fixture
def launch(tmp_path):
    """Four rates with two seeds: the third is the best, one trial waits, one was killed."""
    launch = Launch(
        folder=str(tmp_path / "lr"),
        command="train",
        flags=["--gin_file=a.gin"],
        engine="local",
        working_dir=str(tmp_path),
        space={"AdamW.learning_rate": "log(1e-4, 1e-1, 4)", "train.seed": "range(2)"},
        objective="loss",
    )
    save_launch(launch)
    study = open_study(launch)
    for number, row in enumerate(launch.planned[:-1]):
        study.take(number)
        folder = launch.model_dir(number)
        folder.mkdir()
        value = {1e-4: 3.0, 1e-3: 2.0, 1e-2: 1.0, 1e-1: 4.0}[row["AdamW.learning_rate"]]
        value += 0.1 * row["train.seed"]
        append_record(
            folder / "attempts.jsonl",
            attempt=1,
            began=utc_now(),
            command=["t5lite", "train"],
        )
        if number:
            append_record(folder / "attempts.jsonl", attempt=1, outcome="finished", seconds=36.0)
            seconds = dict.fromkeys(itertools.chain(*KINDS.values()), 0.0)
            seconds |= {"step": 10.0, "wait": 8.0, "save": 18.0}
            append_record(folder / GOODPUT, attempt=1, step=20, seconds=seconds)
            write_result(folder, 20, "early: loss has not improved" if number == 4 else None)
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


def test_the_best_run_is_first_in_the_table(launch):
    found = collect_runs([launch.folder])
    titles, *rows = csv.reader(io.StringIO(csv_text(found)))
    assert titles[:5] == ["run", "AdamW.learning_rate", "train.seed", "loss", "step"]
    assert [row[0] for row in rows] == ["4", "5", "2", "3", "1", "6", "0", "7"]
    assert rows[0][1:5] == ["0.01", "0", "1.5", "20"]
    best = dict(zip(titles, rows[0], strict=True))
    assert float(best["goodput_fraction"]) == 0.5
    assert float(best["hours"]) == 0.01
    assert best["tokens_per_second"] == "2000.0"
    killed = dict(zip(titles, rows[6], strict=True))
    assert (killed["failed"], killed["goodput_fraction"]) == ("1", "")
    assert best["ended"] == "early: loss has not improved"
    assert [dict(zip(titles, row, strict=True))["ended"] for row in (rows[1], rows[6])] == [
        "all steps",
        "",
    ]
    assert rows[-1][3] == ""
    assert found.best.command.endswith(
        f"--gin.train.seed=0 --gin.MODEL_DIR={launch.folder}/trials/0004"
    )
    table, goodput = markdown_text(found).split("\n\n")
    assert table.count("\n") == 9
    # The header and the six finished runs.
    first = goodput.splitlines()[2]
    assert goodput.count("\n") == 2 + 6
    assert first == "| 4 | 18 | 0 | 0 | 0 | 18 | 0 | 0 | 0 |"
    highest = collect_runs([launch.folder], objective="dev/loss", maximize=True)
    assert highest.best.name == "6"


def test_an_unfinished_run_is_not_the_best(launch):
    # Its first score is better than every last score.
    folder = launch.model_dir(7)
    folder.mkdir()
    open_study(launch).take(7)
    append_record(
        folder / "attempts.jsonl", attempt=1, began=utc_now(), command=["t5lite", "train"]
    )
    append_record(folder / "metrics.jsonl", step=0, split="dev", loss=0.1)
    with locked(folder):
        found = collect_runs([launch.folder])
    assert found.best.name == "4"
    titles, *rows = csv.reader(io.StringIO(csv_text(found)))
    # The first trial was killed before its end.
    assert [row[0] for row in rows] == ["4", "5", "2", "3", "1", "6", "7", "0"]
    going = dict(zip(titles, rows[-2], strict=True))
    assert (going["run"], going["failed"]) == ("7", "0")


def test_a_launch_can_be_moved(launch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "lr").rename(tmp_path / "elsewhere" / "lr")
    found = collect_runs([str(moved)])
    assert found.best.name == "4"
    assert found.best.command.endswith(f"--gin.MODEL_DIR={moved}/trials/0004")
    assert open_study(read_launch(moved)).best().number == 4


def test_runs_outside_launches_are_compared(launch):
    folders = [str(launch.model_dir(number)) for number in (1, 4)]
    found = collect_runs(folders, objective="loss")
    assert [run.name for run in found.runs] == folders
    assert found.best.command == "t5lite train"
    assert report_figures(found).keys() == {"curves", "goodput"}


def test_launches_that_rank_by_different_metrics_need_a_metric(launch, tmp_path):
    other = dataclasses.replace(launch, folder=str(tmp_path / "other"), maximize=True)
    save_launch(other)
    folders = [launch.folder, other.folder]
    with pytest.raises(UserError, match=r"the lowest loss \(.*lr\), the highest loss \(.*other\)"):
        collect_runs(folders)
    assert collect_runs(folders, objective="loss", maximize=False).best.name == "lr/4"


class Images(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.sources.append(dict(attrs)["src"])


def test_a_page_holds_all_plots(launch, tmp_path):
    found = collect_runs([launch.folder])
    # Seeds are noise: no plot over them, and no parallel coordinates of one parameter.
    drawn = report_figures(found)
    assert list(drawn) == ["curves", "by_AdamW.learning_rate", "goodput"]
    write_report(found, tmp_path)
    page = Images()
    page.feed((tmp_path / "report.html").read_text())
    assert len(page.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "too few settings: importance needs 10" in (tmp_path / "report.html").read_text()


def test_curves_are_means_over_seeds_in_a_band(launch):
    curves = report_figures(collect_runs([launch.folder]))["curves"].axes[0]
    # A line and a band for each rate; the last rate has one seed only.
    assert (len(curves.lines), len(curves.collections)) == (4, 3)
    best = curves.lines[0]
    assert best.get_label() == "learning_rate 0.01"
    assert best.get_ydata().tolist() == pytest.approx([2.05, 1.55])
    assert "lower is better" in curves.get_ylabel()


def test_bars_of_goodput_add_up_to_the_time_of_a_run(launch):
    axes = report_figures(collect_runs([launch.folder]))["goodput"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["4", "5", "2", "3", "1", "6"]
    ends = [bar.get_x() + bar.get_width() for bar in axes.containers[-1]]
    assert ends == [36.0] * 6
    assert [bars.get_label() for bars in axes.containers][::7] == ["stepping", "lost"]


def test_the_best_run_is_a_ring_that_no_data_point_looks_like(launch):
    axes = report_figures(collect_runs([launch.folder]))["by_AdamW.learning_rate"].axes[0]
    assert axes.get_xscale() == "log"
    points, ring = axes.lines
    assert ring.get_label() == "best: run 4"
    assert ring.get_markerfacecolor() == "none"
    assert ring.get_markersize() > 1.5 * points.get_markersize()


def varied(count, **params):
    """Returns a report of whole runs with given parameters."""
    return Report(
        runs=[
            ReportedRun(
                name=str(i),
                params={name: values[i] for name, values in params.items()},
                curve=[(1, float(i))],
                step=1,
                attempts=dict.fromkeys(OUTCOMES, 0),
                tokens_per_second=1.0,
                hours=1.0,
                goodput=None,
                command="t5lite train",
            )
            for i in range(count)
        ],
        objective="loss",
        maximize=False,
    )


def test_seeds_stand_on_an_axis_of_integers():
    figure = report_figures(varied(3, **{"train.seed": [0, 1, 2]}))["by_train.seed"]
    assert figure.axes[0].get_xticks().tolist() == [0, 1, 2]
    many = report_figures(varied(40, **{"train.seed": list(range(40))}))["by_train.seed"]
    assert all(tick == round(tick) for tick in many.axes[0].get_xticks())


def test_parallel_coordinates_say_which_end_is_good():
    report = varied(3, a=[1, 2, 3], b=["x", "y", "x"], SEED=[0, 1, 2])
    for maximize, top in ((False, "0  best"), (True, "2  best")):
        figure = report_figures(dataclasses.replace(report, maximize=maximize))
        axes = figure["parallel_coordinates"].axes[0]
        heights = {text.get_text(): text.xy[1] for text in axes.texts}
        assert heights[top] == 1.0
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels[:2] == ["a", "b"]
        assert f"({'higher' if maximize else 'lower'} is better)" in labels[2]


def test_importance_of_enough_settings_is_drawn():
    report = varied(12, a=list(range(12)), b=["x", "y"] * 6, SEED=list(range(12)))
    axes = report_figures(report)["importance"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]


def test_folders_that_cannot_be_reported_are_rejected(launch, tmp_path):
    with pytest.raises(UserError, match="is neither a run nor a launch"):
        collect_runs([str(tmp_path)])
    with pytest.raises(UserError, match="no run has recorded 'bleu'; recorded metrics: loss"):
        collect_runs([launch.folder], objective="bleu")
    # A line that is being written does not matter.
    with (launch.model_dir(0) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30})[:-3])
    assert len(collect_runs([launch.folder]).runs) == 8
