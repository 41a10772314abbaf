import t5lite.cli.work_progress as work_progress
from t5lite.cli.work_progress import WorkProgress


def test_lines_tell_how_far_work_has_come_where_there_is_no_terminal(monkeypatch, capsys):
    clock = iter([0.0, 5.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr(work_progress.time, "perf_counter", lambda: next(clock))
    with WorkProgress() as progress:
        # Begun at 100, so that twenty seconds are worth 40.
        for done in (100, 110, 140, 142, 160):
            progress.at("predict", done, 200)
    assert capsys.readouterr().err.splitlines() == [
        "predict: 140/200  2.0 a second  0:00:30 left",
        "predict: 160/200  1.5 a second  0:00:27 left",
    ]


def test_of_how_much_need_not_be_known(monkeypatch, capsys):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(work_progress.time, "perf_counter", lambda: next(clock))
    with WorkProgress() as progress:
        progress.at("losses", 0, None)
        progress.at("losses", 50, None)
    assert capsys.readouterr().err == "losses: 50  5.0 a second\n"
