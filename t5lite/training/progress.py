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


class Progress:
    """Shows the step and the latest metrics.

    Args:
        shown: whether to print at all; False except in the first process.
    """

    def __init__(self, *, first_step: int, total_steps: int, shown: bool) -> None:
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
        self._task = self._bar.add_task("", total=total_steps, completed=first_step)

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
        self.log(
            f"{split} at step {step}: loss {scores['loss_nats_per_token']:.4f}  cross-entropy "
            f"{scores['cross_entropy_nats_per_token']:.4f} nats per token  perplexity "
            f"{scores['perplexity']:.2f}  accuracy {scores['accuracy_fraction']:.1%}  "
            f"{scores['target_tokens']:,.0f} tokens"
        )
        others = {
            name: value
            for name, value in scores.items()
            if name.endswith("/cross_entropy_nats_per_token")
            or name.rpartition("/")[2] not in COMMON_SCORES
        }
        for name, value in others.items():
            self.log(f"  {name} {value:.4f}")

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the metrics of training at `step`."""
        mfu = metrics.get("mfu_fraction")
        left = (self._total_steps - step) * metrics["step_seconds"]
        text = "  ".join(
            [
                f"loss {metrics['loss_nats_per_token']:.4f}",
                f"{metrics['tokens_per_second']:,.0f} tokens/s",
                f"{metrics['model_flops_per_second'] / 1e12:.3g} TFLOP/s",
                f"MFU {mfu:.1%}" if mfu is not None else "MFU n/a",
            ]
        )
        if self._bar.disable:
            remaining = datetime.timedelta(seconds=round(left))
            self.log(f"step {step}/{self._total_steps}  {text}  {remaining} left")
        else:
            self._bar.update(self._task, completed=step, description=text)
