"""`t5lite data build | show | stats | list | prune`."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.filesize
import rich.progress
import rich.table
import rich.text

from t5lite.cli.documents import json_document
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import load_roots
from t5lite.core.counts import counted
from t5lite.core.errors import UserError
from t5lite.core.examples import ClassObjective, Tokens
from t5lite.data.batching.stream import Batches, eval_examples
from t5lite.data.sources.built_data_sets import PRUNABLE, built_data_sets, prune
from t5lite.data.sources.tfds_source import data_folder
from t5lite.data.statistics import LengthStatistics, RowStatistics, row_statistics, task_statistics
from t5lite.data.storage.building import BuildOptions
from t5lite.data.task import Task
from t5lite.data.text.vocabulary import Vocabulary
from t5lite.training.run import Run

# The examples of a packed row, in turn.
EXAMPLE_STYLES = ("cyan", "yellow", "green", "magenta", "blue", "red")


def data_command(action: str, flags: Any, bindings: Sequence[str]) -> None:
    """Runs an action on the data of a run file, or on the data sets of a folder.

    Raises:
        UserError: for both a run file and `--data_dir`, or bindings without a run file.
    """
    quiet_libraries()
    if flags.data_dir is not None and flags.gin_file:
        raise UserError(
            f"--data_dir and --gin_file are mutually exclusive, got --data_dir={flags.data_dir}; "
            "the sources of a run file name their own folders"
        )
    if bindings and not flags.gin_file:
        raise UserError(f"data {action} without a --gin_file takes no bindings, got {bindings[0]}")
    console = rich.console.Console(highlight=False, soft_wrap=True)
    if action in ("list", "prune") and not flags.gin_file:
        folders = [data_folder(flags.data_dir)]
    else:
        (run,) = load_roots(flags, bindings, "train")
        folders = _folders_of(run)
    if action == "build":
        build_data(run, console, workers=flags.workers)
    elif action == "show":
        show_data(run, console, split=flags.split, count=flags.count)
    elif action == "stats":
        print_statistics(
            run, console, split=flags.split, max_records=flags.records, as_json=flags.json
        )
    elif action == "list":
        list_data_sets(folders, console)
    else:
        prune_data_sets(folders, console)


def build_data(run: Run, console: rich.console.Console, *, workers: int | None) -> None:
    """Builds the splits that the run reads, and prints the fingerprint of the records of each."""
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(
        *columns, console=console, disable=not console.is_terminal
    ) as progress:
        for task, split in itertools.product(run.task.tasks, (run.train_split, run.eval_split)):
            bar = progress.add_task(f"{task.name} {split}", total=None)

            def advance(done: int, count: int, records: int, bar: Any = bar) -> None:
                progress.update(bar, completed=done, total=count)

            tokens = task.tokens(split, BuildOptions(workers=workers, on_shard=advance))
            progress.remove_task(bar)
            console.print(f"{task.name} {split}: {tokens.fingerprint}", markup=False)


def show_data(run: Run, console: rich.console.Console, *, split: str, count: int) -> None:
    """Prints examples of every task as the model is trained on them, and rows of a batch."""
    for task in run.task.tasks:
        _show_task(task, console, split, count)
    rows = range(min(run.batch_size, count))
    batches = Batches(
        run.task,
        split,
        run.layout,
        rows=rows,
        batch_size=run.batch_size,
        seed=run.stream_seed,
        packed=run.packed,
    )
    try:
        features, _ = next(batches)
    finally:
        batches.close()
    for row in rows:
        console.print(f"row {row} of the first batch", style="bold")
        for side in ("encoder_input", "decoder_input", "decoder_target"):
            if (tokens := features.get(f"{side}_tokens")) is not None:
                ids = features[f"{side.partition('_')[0]}_segment_ids"][row]
                console.print(f"  {side:15}", _coloured(tokens[row], ids, run.task.vocabulary))
        console.print()


def _show_task(task: Task, console: rich.console.Console, split: str, count: int) -> None:
    # Before anything is printed: this may build a data set, and log that.
    examples = list(itertools.islice(eval_examples(task, split), count))
    console.print(f"task {task.name}, {split}", style="bold", markup=False)
    for example in examples:
        for name in ("inputs", "targets"):
            if name not in example or not len(example[name]):
                continue
            if name == "targets" and isinstance(task.objective, ClassObjective):
                classes = task.objective.prediction(example, example[name], task.vocabulary)
                console.print(f"  {name:8}", rich.text.Text(classes))
            else:
                text = _decoded(example[name], task.vocabulary)
                console.print(f"  {name:8}", text, _counts(example[name], task.vocabulary))
    console.print()


def _counts(tokens: Tokens, vocabulary: Vocabulary) -> str:
    """Returns the number of tokens, and how many of them are sentinels or unknown pieces."""
    sentinels = vocabulary.is_sentinel(tokens)
    text = counted(len(tokens), "token")
    if count := int(sentinels.sum()):
        text += f", {counted(count, 'sentinel')}"
    if vocabulary.has_unknown_pieces and (count := int((tokens == vocabulary.unknown_id).sum())):
        text += f", {count} unknown"
    return f"({text})"


def _coloured(
    tokens: np.ndarray, segment_ids: np.ndarray, vocabulary: Vocabulary
) -> rich.text.Text:
    """Returns the examples of a row, each in its own colour, and the number of empty positions."""
    text = rich.text.Text()
    for segment in range(1, int(segment_ids.max(initial=0)) + 1):
        style = EXAMPLE_STYLES[(segment - 1) % len(EXAMPLE_STYLES)]
        text.append_text(_decoded(tokens[segment_ids == segment], vocabulary, style))
        text.append("|", style="bold")
    text.append(f" {int((segment_ids == 0).sum())} empty", style="dim")
    return text


def _decoded(tokens: np.ndarray, vocabulary: Vocabulary, style: str = "") -> rich.text.Text:
    """Returns the text of tokens, with unknown pieces, ends of sequence and line ends visible."""
    pieces = np.split(tokens, np.flatnonzero(tokens == vocabulary.eos_id) + 1)
    parts = [
        vocabulary.decode(piece, unknown="<unk>") + ("\u23f9" if vocabulary.eos_id in piece else "")
        for piece in pieces
    ]
    return rich.text.Text("".join(parts).replace("\n", "\u23ce"), style=style)


def print_statistics(
    run: Run, console: rich.console.Console, *, split: str, max_records: int, as_json: bool
) -> None:
    """Prints statistics of the records of every task, and of the rows of batches."""
    tasks = {
        task.name: task_statistics(task, split, max_records=max_records) for task in run.task.tasks
    }
    rates = dict(zip(tasks, run.task.rates(split), strict=True))
    rows = row_statistics(
        run.task,
        split,
        run.layout,
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
        print(json_document(document))
        return
    table = rich.table.Table(title=f"{split}, lengths in tokens", box=None)
    table.add_column("text", no_wrap=True)
    for name in ("min", "median", "mean", "95 %", "max", "truncated", "unknown", "per epoch"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, task in tasks.items():
        for text, lengths in task.lengths.items():
            table.add_row(*_cells(f"{name} {text}", lengths))
    # Without a terminal, the width of the console is a guess.
    needed = console.measure(table, options=console.options.update(max_width=200)).maximum
    console.print(table, width=console.width if console.is_terminal else needed, crop=False)
    for name, task in tasks.items():
        some = "" if task.looked_at == task.records else f", {task.looked_at:,} of them read"
        left_out = f", {task.left_out:,} dropped by preprocessors" if task.left_out else ""
        console.print(
            f"{name}: {counted(task.records, 'record')}{some}{left_out}; {rates[name]:.1%} of "
            "examples"
        )
    console.print(_row_line(rows, packed=run.packed))


def _cells(name: str, lengths: LengthStatistics) -> Iterator[str]:
    yield name
    yield f"{lengths.smallest:,}"
    yield f"{lengths.median:,.0f}"
    yield f"{lengths.mean:,.1f}"
    yield f"{lengths.percentile_95:,.0f}"
    yield f"{lengths.largest:,}"
    yield f"{lengths.cut_fraction:.1%}"
    yield f"{lengths.unknown_fraction:.2%}"
    yield f"{lengths.tokens_per_epoch:,.0f}"


def _row_line(rows: RowStatistics, *, packed: bool) -> str:
    fill = ", ".join(f"{side} {fraction:.1%}" for side, fraction in rows.fill_fraction.items())
    return (
        f"rows, {'packed' if packed else 'not packed'}: {rows.examples_per_row:.2f} examples per "
        f"row, filled {fill}, {rows.tokens_per_batch:,.0f} tokens per batch"
    )


def _folders_of(run: Run) -> list[pathlib.Path]:
    """Returns the folders in which the sources of a run keep data sets."""
    directories = [getattr(task.source, "data_dir", None) for task in run.task.tasks]
    return list(dict.fromkeys(map(data_folder, directories)))


def list_data_sets(folders: Sequence[pathlib.Path], console: rich.console.Console) -> None:
    """Prints the data sets that were built from files."""
    for folder in folders:
        console.print(f"data sets built from files in {folder}", style="bold", markup=False)
        for found in built_data_sets(folder):
            size = rich.filesize.decimal(found.file_bytes)
            files = (
                f"{found.files[0]}{', ...' if len(found.files) > 1 else ''}" if found.files else ""
            )
            console.print(
                f"  {pathlib.Path(found.path).name}  {found.state}, "
                f"{counted(found.records, 'record')}, "
                f"{size}  {found.split} {files}".rstrip(),
                markup=False,
            )


def prune_data_sets(folders: Sequence[pathlib.Path], console: rich.console.Console) -> None:
    """Removes the data sets that no run can use any more, as after a change of their files."""
    for folder in folders:
        removed = []
        for found in built_data_sets(folder):
            if found.state in PRUNABLE and prune(found):
                removed.append(found)
                console.print(f"removed {found.path}: {found.state}", markup=False)
        size = rich.filesize.decimal(sum(found.file_bytes for found in removed))
        console.print(
            f"{folder}: removed {counted(len(removed), 'data set')}, {size}", markup=False
        )
