"""Scores of a whole split: of its targets as they are, and of what the model predicts itself."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from t5lite.core.batches import Batch, targets_of, writing_side
from t5lite.core.errors import UserError
from t5lite.core.examples import Example, Tokens
from t5lite.core.numbers import as_inputs, check_number
from t5lite.data.batching.features import Layout, batch_of
from t5lite.data.mixture import Mixture
from t5lite.data.questions import Question, questions
from t5lite.data.task import Task
from t5lite.inference.decoding import Decoding, check_target_lengths
from t5lite.inference.predict import Prompt, make_predict
from t5lite.inference.score import make_score
from t5lite.losses.evaluation import row_sums
from t5lite.losses.loss import Loss, mean_metrics
from t5lite.models.apply import ModelApply
from t5lite.models.architectures import EncoderOnly, Model
from t5lite.parallel.dispatch import settle
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import batch_sharding, check_lengths, local_rows, make_global, on_mesh

Evaluate = Callable[[Any], dict[str, float]]
OnProgress = Callable[[str, int, int | None], None]
# By name, a number for each example.
Sums = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `t5lite eval` scores, and training where it evaluates; None takes the run's own value.

    Args:
        task: a task, or a mixture of several, with the run's vocabulary.
        split: of the task's source.
        batch_size: rows scored, and targets written, at a time.
        decoding: how targets are written for tasks that name metrics.
    """

    task: Task | Mixture | None = None
    split: str | None = None
    batch_size: int | None = None
    decoding: Decoding = Decoding()

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_number("evaluate.batch_size", self.batch_size, "at least 1", lambda n: n >= 1)


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
    on_progress: OnProgress = lambda what, done, total: None,
) -> Evaluate:
    """Returns a function from parameters to the scores of all of `split`.

    Every target of the split counts once, whatever the batch size and the mesh. The scores are
    `loss_nats_per_token` (with z-loss and smoothing), `cross_entropy_nats_per_token`, `perplexity`
    (its exponential), `bits_per_byte` (all nats of the targets over the UTF-8 bytes of their text;
    too high where something is unknown to the vocabulary, of which no bytes are known),
    `accuracy_fraction` (of tokens), `sequence_accuracy_fraction` (of targets with all tokens
    right), `target_tokens` and `examples`. Where a task names metrics, targets are written, or
    chosen, and the metrics' scores are there too; where it names a category, all once more for
    each, named `FIELD=VALUE/SCORE`. Of a mixture they are those of all tasks together, and once
    more of each task, named `TASK/SCORE`.

    Args:
        decoding: how targets are written for tasks that name metrics; None for no metrics.
        counted: from target tokens to which of them count; None for all.
        on_progress: called with what is being done, of how many examples it is done, and the number
            of all, None where that is not known.

    Raises:
        UserError: where the mesh does not divide the batch, the split is empty, or `decoding` asks
            for longer targets than a task has.
    """
    # What is wrong with the split is said before anything is compiled.
    for part in task.tasks:
        part.tokens(split)
    sharding = batch_sharding(mesh, batch_size, owner="batch_size of the evaluation")
    check_lengths(mesh, layout.lengths)
    rows, place = local_rows(sharding, batch_size), make_global(sharding, batch_size)

    @functools.partial(jax.jit, out_shardings=jax.NamedSharding(mesh.devices, jax.P()))
    def eval_step(params: Any, loss: Any, batch: Batch) -> dict[str, jax.Array]:
        return row_sums(loss, ModelApply(model), params, batch)

    def sums_of(params: Any, examples: Sequence[Example]) -> dict[str, jax.Array]:
        some = [[examples[row]] if row < len(examples) else [] for row in rows]
        batch = batch_of(layout, some)
        if counted is not None:
            ids, weights = targets_of(batch)
            name = f"{writing_side(batch)}_loss_weights"
            batch = {**batch, name: weights * counted(ids)}
        return eval_step(params, as_inputs(loss), place(batch))

    predict_all = None
    if decoding is not None:
        for part in task.tasks:
            if part.metrics and part.choices is None:
                owner = f"{type(part.objective).__name__}.targets_length"
                check_target_lengths(vars(decoding), part.objective.targets_length, owner)
        predict_all = _make_predict_all(model, mesh, task, decoding, batch_size, on_progress)
    has_text = not isinstance(model, EncoderOnly) or model.classes is None

    def targets(example: Example) -> Tokens:
        """Returns those that count."""
        weights = example.get("target_weights", np.ones_like(example["targets"])) > 0
        ids = example["targets"][weights]
        return ids if counted is None else ids[counted(ids)]

    def scores_of(params: Any, part: Task) -> tuple[Sums, dict[str, float]]:
        """Returns the sums of every example, and the scores of the whole and of categories."""
        waiting = questions(part, split)
        sums: list[dict[str, jax.Array]] = []
        num_bytes: list[int] = []
        categories: list[str] = []
        # Only what metrics need stays in memory.
        asked: list[Question] = []
        while some := list(itertools.islice(waiting, batch_size)):
            examples = [question.example for question in some]
            with on_mesh(mesh):
                sums.append(sums_of(params, examples))
            settle(sums, mesh)
            on_progress(f"{part.name}: losses", len(categories) + len(some), None)
            if has_text:
                num_bytes += [part.vocabulary.num_bytes(targets(each)) for each in examples]
            categories += [question.category or "" for question in some]
            asked += some if predict_all and part.metrics else []
        if not sums:
            raise UserError(f"split {split!r} of task {part.name!r} holds no example to score")
        fetched, count = jax.device_get(sums), len(categories)
        of_each = {
            name: np.concatenate([each[name] for each in fetched])[:count] for name in fetched[0]
        }
        of_each["bytes"] = np.array(num_bytes or [0] * count)
        predictions = predict_all(params, part, asked) if predict_all and asked else []
        among = {"": np.arange(count)}
        for name in sorted(set(categories)) if part.category is not None else ():
            among[f"{part.category}={name}/"] = np.flatnonzero(np.array(categories) == name)
        scores: dict[str, float] = {}
        for prefix, numbers in among.items():
            made = _scores(loss, {name: values[numbers] for name, values in of_each.items()})
            if predictions:
                answers = [asked[number].answers for number in numbers]
                made |= part.score(answers, [predictions[number] for number in numbers])
            scores |= {f"{prefix}{name}": value for name, value in made.items()}
        return of_each, scores

    def evaluate(params: Any) -> dict[str, float]:
        parts = {part.name: scores_of(params, part) for part in task.tasks}
        if len(parts) == 1:
            return parts[task.tasks[0].name][1]
        every = [sums for sums, _ in parts.values()]
        scores = _scores(
            loss, {name: np.concatenate([s[name] for s in every]) for name in every[0]}
        )
        for name, (_, of_task) in parts.items():
            scores |= {f"{name}/{score}": value for score, value in of_task.items()}
        return scores

    return evaluate


def _make_predict_all(
    model: Model,
    mesh: DeviceMesh,
    task: Task | Mixture,
    decoding: Decoding,
    batch_size: int,
    on_progress: OnProgress,
) -> Callable[[Any, Task, Sequence[Question]], list[str]]:
    """Returns what predicts the answers of questions, by choice or by writing."""

    @functools.cache
    def writer(inputs_length: int, targets_length: int) -> Any:
        assert not isinstance(model, EncoderOnly)
        return make_predict(
            *(model, mesh, decoding),
            stop_ids=task.vocabulary.stop_ids,
            first_ids=task.vocabulary.first_ids,
            inputs_length=inputs_length,
            targets_length=targets_length,
            batch_size=batch_size,
        )

    @functools.cache
    def scorer(inputs_length: int, targets_length: int) -> Any:
        assert not isinstance(model, EncoderOnly)
        return make_score(
            *(model, mesh),
            inputs_length=inputs_length,
            targets_length=targets_length,
            batch_size=batch_size,
        )

    def predict_all(params: Any, part: Task, asked: Sequence[Question]) -> list[str]:
        lengths = part.objective.inputs_length, part.objective.targets_length

        def on_done(done: int) -> None:
            on_progress(f"{part.name}: predictions", done, total)

        if part.choices is not None:
            examples = [example for question in asked for _, example in question.choices]
            total = len(examples)
            scores = iter(scorer(*lengths)(params, examples, on_done))
            return [
                max((next(scores).score, -n, text) for n, (text, _) in enumerate(q.choices))[2]
                for q in asked
            ]
        prompts = [
            Prompt(inputs=question.example["inputs"], number=number)
            for number, question in enumerate(asked)
        ]
        total = len(prompts)
        written = writer(*lengths)(params, prompts, on_done)
        return [part.vocabulary.decode(best.tokens) for best, *_ in written]

    return predict_all


def _scores(loss: Loss, sums: Sums) -> dict[str, float]:
    """Returns what numbers of some examples amount to."""
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
