"""What a run shows on a terminal of 80 columns."""

import pytest

from t5lite.training.progress import Progress

METRICS = {
    "loss_nats_per_token": 12.9503,
    "tokens_per_second": 12_404_138.0,
    "step_seconds": 0.35,
    "model_flops_per_second": 0.0123e12,
}
SCORES = {
    "loss_nats_per_token": 2.1,
    "cross_entropy_nats_per_token": 2.0,
    "perplexity": 1364.86,
    "accuracy_fraction": 0.4,
    "target_tokens": 123456.0,
}


@pytest.fixture
def progress(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return Progress(1_000_000, shown=True)


@pytest.mark.parametrize("mfu", [{}, {"mfu_fraction": 0.4567}])
def test_the_time_left_of_a_long_run_is_shown_whole(mfu, progress):
    progress.begin(123_450)
    progress.report(123_456, {**METRICS, **mfu})
    console = progress._console
    with console.capture() as captured:
        console.print(progress._bar.get_renderable())
    (line,) = captured.get().splitlines()
    assert "step 123456/1000000" in line
    assert "loss 12.9503  12,404,138 tokens/s" in line
    assert ("MFU 45.7%" in line) == bool(mfu)
    # The time is unknown after a single step.
    assert line.rstrip().endswith("-:--:--")
    assert "\u2026" not in line


def test_scores_are_broken_between_words(progress):
    with progress._console.capture() as captured:
        progress.score(123_456, "validation", SCORES)
    lines = captured.get().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(" ".join(lines).split()).endswith(
        "nats per token perplexity 1364.86 accuracy 40.0% 123,456 tokens"
    )
