import t5lite.cli.work_progress as work_progress
from t5lite.cli.work_progress import WorkProgress


def test_lines_show_progress_if_there_is_no_terminal(monkeypatch, capsys):
    clock = iter([0.0, 5.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr(work_progress.time, "perf_counter", lambda: next(clock))
    with WorkProgress() as progress:
        # It starts at 100: 40 in twenty seconds.
        for done in (100, 110, 140, 142, 160):
            progress.report("predict", done, 200)
    assert capsys.readouterr().err.splitlines() == [
        "predict: compiling",
        "predict: 140/200  2.0 per second  0:00:30 left",
        "predict: 160/200  1.5 per second  0:00:27 left",
    ]


def test_work_that_needs_no_beginning_prints_nothing_until_it_takes_long(monkeypatch, capsys):
    clock = iter([0.0, 5.0, 20.0])
    monkeypatch.setattr(work_progress.time, "perf_counter", lambda: next(clock))
    with WorkProgress(beginning=None) as progress:
        for done in (0, 5, 20):
            progress.report("arrays", done, 29)
    assert capsys.readouterr().err == "arrays: 20/29  1.0 per second  0:00:09 left\n"


def test_the_total_may_be_unknown(monkeypatch, capsys):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(work_progress.time, "perf_counter", lambda: next(clock))
    with WorkProgress() as progress:
        progress.report("losses", 0, None)
        progress.report("losses", 50, None)
    assert capsys.readouterr().err == "losses: compiling\nlosses: 50  5.0 per second\n"
