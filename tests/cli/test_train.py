from t5lite.cli.train import announced


def test_the_first_report_of_progress_is_announced(capsys):
    report = announced("compiling the evaluation")
    assert capsys.readouterr().out == ""
    for done in (0, 5):
        report("task: losses", done, None)
    assert capsys.readouterr().out == "compiling the evaluation\n"
