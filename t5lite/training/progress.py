"""Progress of a run on the console: a bar on a terminal, plain lines elsewhere."""

import datetime
from collections.abc import Mapping
from types import TracebackType

import rich.console
import rich.progress

# Scores of every evaluation, which `score` prints on one line.
COMMON_SCORES = (
    "loss_nats_per_token",
    "cross_entropy_nats_per_token",
    "z_loss_nats_per_token",
    "perplexity",
    "accuracy_fraction",
    "sequence_accuracy_fraction",
    "bits_per_byte",
    "target_tokens",
    "examples",
)

# A terminal with room for all metrics of a step beside the bar.
WIDE_COLUMNS = 110


class Progress:
    """Shows the step and the latest metrics.

    Args:
        shown: whether to print at all; False except in the first process.
    """

    def __init__(self, total_steps: int, *, shown: bool) -> None:
        self._console = rich.console.Console(quiet=not shown, highlight=False, soft_wrap=True)
        self._total_steps = total_steps
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total_steps)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._bar.stop()

    def log(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False)

    def score(self, step: int, split: str, scores: Mapping[str, float]) -> None:
        """Prints the scores of a split."""
        text = (
            f"{split} at step {step}: loss {scores['loss_nats_per_token']:.4f}  cross-entropy "
            f"{scores['cross_entropy_nats_per_token']:.4f} nats per token  perplexity "
            f"{scores['perplexity']:.2f}  accuracy {scores['accuracy_fraction']:.1%}  "
            f"{scores['target_tokens']:,.0f} tokens"
        )
        # A terminal would break it within a word.
        self._console.print(text, markup=False, soft_wrap=not self._console.is_terminal)
        others = {
            name: value
            for name, value in scores.items()
            if name.endswith("/cross_entropy_nats_per_token")
            or name.rpartition("/")[2] not in COMMON_SCORES
        }
        for name, value in others.items():
            self.log(f"  {name} {value:.4f}")

    def begin(self, step: int) -> None:
        """Sets the step from which the run trains."""
        self._bar.reset(self._task, completed=step)

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the metrics of training at `step`."""
        loss = f"loss {metrics['loss_nats_per_token']:.4f}"
        speed = f"{metrics['tokens_per_second']:,.0f} tokens/s"
        flops = f"{metrics['model_flops_per_second'] / 1e12:.3g} TFLOP/s"
        mfu = metrics.get("mfu_fraction")
        share = "MFU n/a" if mfu is None else f"MFU {mfu:.1%}"
        if self._bar.disable:
            left = (self._total_steps - step) * metrics["step_seconds"]
            remaining = datetime.timedelta(seconds=round(left))
            text = "  ".join([loss, speed, flops, share])
            self.log(f"step {step}/{self._total_steps}  {text}  {remaining} left")
        else:
            # Of long runs 80 columns have no room for all of it, and the time would be cut off.
            narrow = [loss, speed] if mfu is None else [loss, speed, share]
            is_wide = self._console.width >= WIDE_COLUMNS
            text = "  ".join([loss, speed, flops, share] if is_wide else narrow)
            self._bar.update(self._task, completed=step, description=text)
