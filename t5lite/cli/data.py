"""`t5lite data build | show | stats`."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress
import rich.table
import rich.text

from t5lite import configurables
from t5lite.cli.quiet import quiet_libraries
from t5lite.data.batching.stream import Batches, eval_examples
from t5lite.data.statistics import row_statistics, task_statistics
from t5lite.data.storage.building import BuildOptions
from t5lite.data.text.vocabularies import Vocabulary
from t5lite.training.run import Run

# Of the examples packed into one row, in turn.
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


def run(action: str, flags: Any, bindings: Sequence[str]) -> None:
    """Does to the data of a run file what `action` says."""
    quiet_libraries()
    (run,) = configurables.load(flags.gin_file, bindings, flags.gin_search_paths, "train")
    console = rich.console.Console(highlight=False, soft_wrap=True)
    if action == "build":
        build(run, console, workers=flags.workers)
    elif action == "show":
        show(run, console, split=flags.split, count=flags.count)
    else:
        stats(run, console, split=flags.split, max_records=flags.records, as_json=flags.json)


def build(run: Run, console: rich.console.Console, *, workers: int | None) -> None:
    """Makes the splits that the run reads ready, and says how much there is in each."""
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(
        *columns, console=console, disable=not console.is_terminal
    ) as progress:
        for task, split in itertools.product(run.task.tasks, (run.train_split, run.eval_split)):
            bar = progress.add_task(f"{task.name} {split}", total=None)

            def advance(done: int, count: int, records: int, bar: Any = bar) -> None:
                progress.update(bar, completed=done, total=count)

            tokens = task.tokens(split, BuildOptions(workers=workers, on_progress=advance))
            progress.remove_task(bar)
            console.print(f"{task.name} {split}: {tokens.fingerprint}", markup=False)


def show(run: Run, console: rich.console.Console, *, split: str, count: int) -> None:
    """Prints examples of every task as they are learned, then rows of the first batch."""
    for task in run.task.tasks:
        console.print(f"task {task.name}, {split}", style="bold", markup=False)
        for example in itertools.islice(eval_examples(task, split), count):
            for name in ("inputs", "targets"):
                if name in example and len(example[name]):
                    names = getattr(task.objective, "classes", None) if name == "targets" else None
                    text = _decoded(example[name], task.vocabulary)
                    size = f"({len(example[name])} tokens)"
                    if names is not None:
                        numbers = example["targets"][example["target_weights"] > 0]
                        text, size = rich.text.Text(" ".join(names[n] for n in numbers)), ""
                    console.print(f"  {name:8}", text, size)
            console.print()
    batches = Batches(
        *(run.task, split, run.layout),
        rows=range(min(run.batch_size, count)),
        batch_size=run.batch_size,
        seed=run.stream_seed,
        packed=run.packed,
    )
    try:
        features, _ = next(batches)
    finally:
        batches.close()
    vocabulary = run.task.vocabulary
    for row in range(min(run.batch_size, count)):
        console.print(f"row {row} of the first batch", style="bold")
        for side in ("encoder_input", "decoder_input", "decoder_target"):
            if (tokens := features.get(f"{side}_tokens")) is not None:
                ids = features[f"{side.partition('_')[0]}_segment_ids"][row]
                console.print(f"  {side:15}", _coloured(tokens[row], ids, vocabulary))
        console.print()


def _coloured(
    tokens: np.ndarray, segment_ids: np.ndarray, vocabulary: Vocabulary
) -> rich.text.Text:
    """Each example in a colour of its own, and how much is empty."""
    text = rich.text.Text()
    for segment in range(1, int(segment_ids.max(initial=0)) + 1):
        colour = COLOURS[(segment - 1) % len(COLOURS)]
        text.append_text(_decoded(tokens[segment_ids == segment], vocabulary, colour))
        text.append("|", style="bold")
    text.append(f" {int((segment_ids == 0).sum())} empty", style="dim")
    return text


def _decoded(tokens: np.ndarray, vocabulary: Vocabulary, style: str = "") -> rich.text.Text:
    """The text with its ends of sequence, and line ends made visible."""
    pieces = np.split(tokens, np.flatnonzero(tokens == vocabulary.eos_id) + 1)
    parts = [
        vocabulary.decode(piece) + ("\u23f9" if vocabulary.eos_id in piece else "")
        for piece in pieces
    ]
    return rich.text.Text("".join(parts).replace("\n", "\u23ce"), style=style)


def stats(
    run: Run, console: rich.console.Console, *, split: str, max_records: int, as_json: bool
) -> None:
    """Prints what the records are like, and what becomes of them in rows."""
    tasks = {
        task.name: task_statistics(task, split, max_records=max_records) for task in run.task.tasks
    }
    rates = dict(zip(tasks, run.task.rates(split), strict=True))
    rows = row_statistics(
        *(run.task, split, run.layout),
        batch_size=run.batch_size,
        seed=run.stream_seed,
        packed=run.packed,
    )
    if as_json:
        document = {
            "split": split,
            "tasks": {
                name: {**dataclasses.asdict(task), "rate": rates[name]}
                for name, task in tasks.items()
            },
            "rows": dataclasses.asdict(rows),
        }
        print(json.dumps(document))
        return
    table = rich.table.Table(title=f"{split}, lengths in tokens", box=None)
    for title in ("text", "least", "median", "mean", "95 %", "most", "cut", "an epoch"):
        table.add_column(title, justify="left" if title == "text" else "right", no_wrap=True)
    for name, task in tasks.items():
        for text, of in task.lengths.items():
            table.add_row(
                *(f"{name} {text}", f"{of.smallest:,}", f"{of.median:,.0f}", f"{of.mean:,.1f}"),
                *(f"{of.percentile_95:,.0f}", f"{of.largest:,}", f"{of.cut_fraction:.1%}"),
                f"{of.tokens_per_epoch:,.0f}",
            )
    console.print(table)
    for name, task in tasks.items():
        some = "" if task.looked_at == task.records else f", {task.looked_at:,} looked at"
        left_out = f", {task.left_out:,} of these left out by steps" if task.left_out else ""
        console.print(
            f"{name}: {task.records:,} records{some}{left_out}; {rates[name]:.1%} of examples"
        )
    fill = ", ".join(f"{side} {share:.1%}" for side, share in rows.fill_fraction.items())
    how = "packed" if run.packed else "not packed"
    console.print(
        f"rows, {how}: {rows.examples_per_row:.2f} examples a row, filled {fill}, "
        f"{rows.tokens_per_batch:,.0f} tokens a batch"
    )
