"""Scores of a whole split: losses of its targets, and metrics of the model's own predictions."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Example, Tokens
from t5lite.core.fields import check_fields
from t5lite.data.batching.features import Layout
from t5lite.data.mixture import Mixture
from t5lite.data.questions import Question, questions
from t5lite.data.task import Task
from t5lite.inference.decoding import Decoding
from t5lite.inference.example_sums import ExampleSums, make_sum_examples
from t5lite.inference.predictions import ReportProgress, make_predict_answers
from t5lite.losses.loss import Loss, mean_metrics
from t5lite.models.model import Model
from t5lite.parallel.dispatch import settle
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import on_mesh

# From parameters to scores by name.
Evaluator = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `t5lite eval` and evaluations during training score; None takes the run's own value.

    Args:
        task: a task, or a mixture, with the run's vocabulary.
        split: of the task's source.
        batch_size: rows per batch, for losses and for generated targets.
        decoding: how targets are generated for tasks that name metrics.

    Raises:
        UserError: if `batch_size` is under 1.
    """

    gin_name: ClassVar[str] = "evaluate"

    task: Task | Mixture | None = None
    split: str | None = None
    batch_size: int | None = None
    decoding: Decoding = Decoding()

    def __post_init__(self) -> None:
        check_fields(self, ["batch_size"], "at least 1", lambda n: n >= 1)


def make_evaluate(
    model: Model,
    task: Task | Mixture,
    layout: Layout,
    loss: Loss,
    mesh: DeviceMesh,
    *,
    split: str,
    batch_size: int,
    decoding: Decoding | None = None,
    counted: Callable[[np.ndarray], np.ndarray] | None = None,
    on_progress: ReportProgress = lambda what, done, total: None,
) -> Evaluator:
    """Returns a function from parameters to the scores of all of `split`.

    Every target of the split counts once, whatever the batch size and the mesh. The scores are
    `loss_nats_per_token` (with z-loss and smoothing), `cross_entropy_nats_per_token`, `perplexity`
    (its exponential), `bits_per_byte` (the nats of all targets over the UTF-8 bytes of their text;
    too high if the vocabulary does not know a piece, whose bytes are unknown),
    `accuracy_fraction` (of tokens), `sequence_accuracy_fraction` (of targets with every token
    right), `target_tokens` and `examples`. If a task names metrics, targets are generated, or
    chosen, and their scores are added. If it names a category, all scores are repeated per value,
    as `FIELD=VALUE/SCORE`. The scores of a mixture are those of its tasks together, and are
    repeated per task, as `TASK/SCORE`.

    Args:
        decoding: how targets are generated for tasks that name metrics; None for no metrics.
        counted: from target tokens to which of them count; None for all.
        on_progress: called with what is being done, the number of examples done, and the total,
            None if unknown.

    Raises:
        UserError: if the mesh does not divide the batch, the split is empty, or `decoding` allows
            longer targets than a task has.
    """
    # A missing split is an error before anything compiles.
    for part in task.tasks:
        part.tokens(split)
    sum_examples = make_sum_examples(
        model, layout, loss, mesh, batch_size=batch_size, counted=counted
    )
    predict = None
    if decoding is not None:
        predict = make_predict_answers(
            model, mesh, task, decoding, batch_size=batch_size, on_progress=on_progress
        )
    has_text = model.classes is None

    def num_bytes_of(part: Task, examples: Sequence[Example]) -> list[int]:
        if not has_text:
            return [0] * len(examples)
        return [part.vocabulary.num_bytes(_counted_targets(each, counted)) for each in examples]

    def score_task(params: Any, part: Task) -> tuple[ExampleSums, dict[str, float]]:
        """Returns the sums of every example, and the scores of the whole and of categories."""
        sums: list[dict[str, jax.Array]] = []
        num_bytes: list[int] = []
        categories: list[str] = []
        # Questions stay in memory only if metrics need them.
        asked: list[Question] = []
        keeps = predict is not None and part.metrics

        def examples_of_questions() -> Iterator[tuple[Example, str]]:
            """Yields the examples of all questions and their categories."""
            for question in questions(part, split):
                asked.extend([question] if keeps else [])
                for example in question.examples:
                    yield example, question.category or ""

        # Programs compile in the first batch.
        on_progress(f"{part.name}: losses", 0, None)
        for some in _batches(examples_of_questions(), batch_size):
            examples = [example for example, _ in some]
            with on_mesh(mesh):
                sums.append(sum_examples(params, examples))
            settle(sums, mesh)
            num_bytes += num_bytes_of(part, examples)
            categories += [category for _, category in some]
            on_progress(f"{part.name}: losses", len(categories), None)
        if not sums:
            raise UserError(f"split {split!r} of task {part.name!r} has no examples to evaluate")
        example_sums = _concatenated(jax.device_get(sums), num_bytes)
        predictions = predict(params, part, asked) if predict is not None and asked else []
        return example_sums, _scores_of(part, loss, example_sums, categories, asked, predictions)

    def evaluate(params: Any) -> dict[str, float]:
        parts = {part.name: score_task(params, part) for part in task.tasks}
        if len(parts) == 1:
            return parts[task.tasks[0].name][1]
        every = [sums for sums, _ in parts.values()]
        together = {name: np.concatenate([sums[name] for sums in every]) for name in every[0]}
        scores = _loss_scores(loss, together)
        for name, (_, task_scores) in parts.items():
            scores |= {f"{name}/{score}": value for score, value in task_scores.items()}
        return scores

    return evaluate


def _batches(
    examples: Iterator[tuple[Example, str]], size: int
) -> Iterator[list[tuple[Example, str]]]:
    while some := list(itertools.islice(examples, size)):
        yield some


def _counted_targets(
    example: Example, counted: Callable[[np.ndarray], np.ndarray] | None
) -> Tokens:
    """Returns the target tokens of an example that count."""
    weights = example.get("target_weights", np.ones_like(example["targets"])) > 0
    ids = example["targets"][weights]
    return ids if counted is None else ids[counted(ids)]


def _concatenated(sums: Sequence[dict[str, np.ndarray]], num_bytes: Sequence[int]) -> ExampleSums:
    """Returns the sums of all examples, without the padding rows of the last batch."""
    count = len(num_bytes)
    joined = {name: np.concatenate([each[name] for each in sums])[:count] for name in sums[0]}
    return {**joined, "bytes": np.array(num_bytes)}


def _scores_of(
    part: Task,
    loss: Loss,
    sums: ExampleSums,
    categories: Sequence[str],
    asked: Sequence[Question],
    predictions: Sequence[str],
) -> dict[str, float]:
    """Returns the scores of all examples of a task, and of each category."""
    # None for all examples.
    groups: list[str | None] = [None]
    if part.category is not None:
        groups += sorted(set(categories))
    scores: dict[str, float] = {}
    for category in groups:
        numbers = np.array([n for n, own in enumerate(categories) if category in (None, own)])
        group = _loss_scores(loss, {name: values[numbers] for name, values in sums.items()})
        if predictions:
            own = [
                (question.answers, prediction)
                for question, prediction in zip(asked, predictions, strict=True)
                if category in (None, question.category or "")
            ]
            group |= part.score([a for a, _ in own], [p for _, p in own])
        prefix = "" if category is None else f"{part.category}={category}/"
        scores |= {f"{prefix}{name}": value for name, value in group.items()}
    return scores


def _loss_scores(loss: Loss, sums: ExampleSums) -> dict[str, float]:
    """Returns the scores that follow from the sums of some examples."""
    has_targets = sums["tokens"] > 0
    examples = float(has_targets.sum())
    right = float((has_targets & (sums["correct"] == sums["tokens"])).sum())
    total = {name: math.fsum(values.tolist()) for name, values in sums.items()}
    scores = mean_metrics(loss, [total])
    bits = total["cross_entropy"] / math.log(2)
    return {
        **scores,
        "perplexity": math.exp(min(scores["cross_entropy_nats_per_token"], 700.0)),
        **({"bits_per_byte": bits / total["bytes"]} if total["bytes"] else {}),
        "sequence_accuracy_fraction": right / max(examples, 1.0),
        "examples": examples,
    }
