"""One run within a loop: its data, its checkpoints and what is told of it.

The loop steps; where it is due a member logs, evaluates and saves.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np

from t5lite.core.due import due
from t5lite.core.errors import Diverged, UserError
from t5lite.core.files import write_atomically
from t5lite.core.run_directory import write_result
from t5lite.models.description import check_same, describe
from t5lite.models.flops import train_flops
from t5lite.models.losses import means
from t5lite.parallel.hardware import device_of
from t5lite.parallel.sharding import batch_sharding, local_rows
from t5lite.training.checkpoints import FOLDER, Checkpoints, open_checkpoint
from t5lite.training.feed import Feed
from t5lite.training.metrics import MetricWriter, NoWriter
from t5lite.training.partial_restore import as_table, restore_by_rules
from t5lite.training.program import TrainProgram
from t5lite.training.progress import Progress
from t5lite.training.run import Run
from t5lite.training.state import TrainState, initial_opt_state
from t5lite.training.step import Sums

Evaluate = Callable[[Any], dict[str, float]]
T = TypeVar("T")


class Member:
    """A run from its latest checkpoint, or its beginning, to its last step. A context.

    Args:
        program: of the run.
        evaluate: from parameters to the scores of the run's evaluation split.
        config_text: what `config.gin` is to hold; written once the run is known to fit.
        shown: whether a person is told of it.

    Attributes:
        step: the latest that was taken.
        first_state: what it goes on from.

    Raises:
        UserError: where a checkpoint does not fit.
    """

    def __init__(
        self, program: TrainProgram, *, evaluate: Evaluate, config_text: str, shown: bool = True
    ) -> None:
        run = program.run
        if run.eval_split == "train":
            raise UserError(
                "train.eval_split 'train' would stand among what is told of training; name it "
                "'train[:100%]'"
            )
        self.run, self._evaluate = run, evaluate
        self._model_dir, self._first = pathlib.Path(run.model_dir), jax.process_index() == 0
        self._ranked = bool(run.keep_highest or run.keep_lowest)
        with contextlib.ExitStack() as stack:
            self._checkpoints = stack.enter_context(
                contextlib.closing(
                    Checkpoints(
                        self._model_dir / FOLDER,
                        keep=run.keep_checkpoints,
                        keep_every_steps=run.keep_every_steps,
                        keep_best=self._ranked,
                    )
                )
            )
            checkpoints = self._checkpoints
            checkpoints.check_room(program.state)
            self._is_new = not checkpoints.steps()
            self.step = _step_before(run) if self._is_new else checkpoints.steps()[-1]
            self._progress = stack.enter_context(
                Progress(
                    first_step=self.step,
                    total_steps=run.total_steps,
                    shown=shown and self._first,
                )
            )
            if self._is_new and self.is_done:
                raise UserError(
                    f"train.initial_checkpoint is of step {self.step} already: train.total_steps "
                    f"must be over it, got {run.total_steps}"
                )
            saved = None if self._is_new else _saved(run, checkpoints)
            rows = local_rows(batch_sharding(program.mesh, run.batch_size), run.batch_size)
            self._feed = Feed(run, rows, saved, say=self._progress.say)
            stack.enter_context(contextlib.closing(self._feed))
            self.first_state = first_state(program, checkpoints, self._progress)
            if self.is_done:
                self._progress.say(f"nothing to train: train.total_steps is {run.total_steps}")
            else:
                if self._first:
                    write_atomically(self._model_dir / "config.gin", config_text)
                self._writer = stack.enter_context(contextlib.closing(self._new_writer()))
            self._stack = stack.pop_all()

    def __enter__(self) -> "Member":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        # Now that the last checkpoint is whole.
        if error is None and self._first and self.step >= self.run.total_steps:
            write_result(self._model_dir, self.step)

    def _new_writer(self) -> MetricWriter | NoWriter:
        if not self._first:
            return NoWriter()
        return MetricWriter(self._model_dir, first_step=self.step, is_new=self._is_new)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to train."""
        return 0 < self.step >= self.run.total_steps

    def begin(self, *, compile_seconds: float) -> dict[str, float] | None:
        """Evaluates what a new run begins with, returns the scores, and starts the clock."""
        self._meter = Meter(self.run, compile_seconds=compile_seconds)
        scores = self._score(self.step, self.first_state.params) if self._is_new else None
        if scores is not None:
            # Ranked only to see that what ranks is there.
            self.run.rank(scores)
        # The loop's own from now on.
        del self.first_state
        self._meter.start()
        return scores

    def next_batch(self) -> dict[str, np.ndarray]:
        """Returns this process's rows of the next batch."""
        return self._meter.timed_next(self._feed)

    def took(
        self,
        sums: Callable[[], Sums],
        state: Callable[[], TrainState],
        *,
        stopping: bool,
    ) -> dict[str, float] | None:
        """Is told that a step was taken, and what came of it.

        Args:
            sums: gives those of the step; called some time, when they are needed.
            state: gives the one behind it; called now or never.
            stopping: whether it was the last for now.

        Returns:
            The scores where it was evaluated.

        Raises:
            UserError: where the loss or the gradient is no longer finite.
        """
        self.step += 1
        run, step = self.run, self.step
        self._meter.sums.append(sums)
        self._progress.advance(step)
        scoring = due(step, every=run.eval_every_steps, last=run.total_steps)
        saving = due(step, every=run.checkpoint_every_steps, last=run.total_steps)
        saving = saving or (scoring and self._ranked) or stopping
        if saving or due(step, every=run.log_every_steps):
            self._log()
        scores = None
        with self._meter.paused():
            now = state() if scoring or saving else None
            rank = None
            if scoring and now is not None:
                scores = self._score(step, now.params)
                rank = run.rank(scores)
            # Last: all that is told of a step is written before there is a checkpoint of it.
            if saving and now is not None:
                told = {**about(run), "rank": rank, "data": self._feed.state()}
                self._checkpoints.save(step, now, told)
        return scores

    def _log(self) -> None:
        metrics = self._meter.read()
        # The gradient too: it is what the next loss would show.
        if not math.isfinite(metrics["loss_nats_per_token"] + metrics["gradient_norm"]):
            raise Diverged(
                f"training diverged: loss or gradient is not finite at step {self.step}; "
                f"checkpoints that are good: {self._checkpoints.steps() or 'none'}; "
                "lower the learning rate or set train.max_gradient_norm"
            )
        self._writer.write(self.step, "train", metrics)
        self._progress.report(self.step, metrics)

    def _score(self, step: int, params: Any) -> dict[str, float]:
        scores = self._evaluate(params)
        self._writer.write(step, self.run.eval_split, scores)
        self._progress.score(step, self.run.eval_split, scores)
        return scores


def given(value: T) -> Callable[[], T]:
    """Returns what gives a value that is there already."""
    return lambda: value


def about(run: Run) -> dict[str, Any]:
    """Returns what a checkpoint says of the run, besides where its data stands."""
    return {
        "seed": run.seed,
        "model": describe(run.model),
        "vocabulary": run.task.vocabulary.describe(),
        "vocabulary_fingerprint": run.task.vocabulary.fingerprint,
    }


def _step_before(run: Run) -> int:
    """Returns the step that a new run begins at."""
    if run.initial_checkpoint is None or not run.restore_optimizer:
        return 0
    with open_checkpoint(run.initial_checkpoint) as (_, step):
        return step


def first_state(program: TrainProgram, checkpoints: Checkpoints, progress: Progress) -> TrainState:
    """Returns the latest saved state, or a new one, with parameters from elsewhere if asked for."""
    run, hyper, shapes, axes = program.run, program.hyper, program.state, program.param_axes
    if steps := checkpoints.steps():
        latest = steps[-1]
        progress.say(f"resuming at step {latest} from {run.model_dir}")
        if run.initial_checkpoint is not None:
            progress.say(
                f"train.initial_checkpoint {run.initial_checkpoint} is not used: {run.model_dir} "
                f"already holds step {latest}; name another MODEL_DIR to start from it"
            )
        return checkpoints.restore(latest, shapes)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    if run.initial_checkpoint is None:
        return program.init(hyper)
    with open_checkpoint(run.initial_checkpoint) as (source, step):
        _tell_other_model(run, source.about(step), progress)
        if run.restore_optimizer:
            if "opt_state" not in source.metadata(step):
                raise UserError(
                    f"train.restore_optimizer: {run.initial_checkpoint} holds no state of an "
                    "optimizer; one of T5X has it if converted with convert.optimizer_state"
                )
            progress.say(f"starting from step and state of {run.initial_checkpoint}")
            return source.restore(step, shapes)
        state = program.init(hyper)
        params, origins = restore_by_rules(source, step, state.params, run.restore_rules)
    progress.say(f"starting from the parameters of {run.initial_checkpoint}")
    for line in as_table(origins) if run.restore_rules else ():
        progress.say(line)
    # The first one leaves before there is another.
    state = dataclasses.replace(state, params=params, opt_state=None)
    opt_state = jax.jit(
        lambda h, p: initial_opt_state(h, p, axes), out_shardings=shardings.opt_state
    )(hyper, params)
    return dataclasses.replace(state, opt_state=opt_state)


def _tell_other_model(run: Run, about: dict[str, Any], progress: Progress) -> None:
    """Says where parameters of the same shapes meant something else where they come from."""
    try:
        check_same(about, run.model, f"{run.initial_checkpoint}")
    except UserError as error:
        if not run.restore_rules:
            progress.say(f"train.initial_checkpoint is of another model: {error}")
    was = about.get("vocabulary_fingerprint")
    if was not in (None, run.task.vocabulary.fingerprint):
        progress.say(f"train.initial_checkpoint was trained with another vocabulary: {was}")


def _saved(run: Run, checkpoints: Checkpoints) -> dict[str, Any]:
    """Returns where the data of the latest checkpoint stands."""
    step = checkpoints.steps()[-1]
    was = checkpoints.about(step)
    if "data" not in was:
        raise UserError(
            f"{run.model_dir} holds a converted checkpoint and no run; use another MODEL_DIR, and "
            f"train.initial_checkpoint={checkpoints.path(step)} to start from it"
        )
    if was["seed"] != run.seed:
        raise UserError(
            f"{run.model_dir} was trained with seed {was['seed']}, got {run.seed}: use the "
            "former, or another MODEL_DIR; train.data_seed changes the data alone"
        )
    check_same(was, run.model, run.model_dir)
    data: dict[str, Any] = was["data"]
    return data


class Meter:
    """Collects what steps return, without waiting for them, and makes metrics when asked."""

    def __init__(self, run: Run, *, compile_seconds: float) -> None:
        lengths = run.layout.lengths
        self._flops_per_step = run.batch_size * train_flops(run.model, lengths)
        device = device_of(jax.devices()[0].device_kind)
        self._peak_flops = None if device is None else device.flops * jax.device_count()
        self._once = {"compile_seconds": compile_seconds}
        # What the steps since the last metrics returned, the latest perhaps not computed yet.
        self.sums: list[Callable[[], Sums]] = []
        self.start()

    def start(self) -> None:
        """Starts the clock anew."""
        self._started, self._data_wait_seconds = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is not training and is not timed."""
        paused = time.perf_counter()
        yield
        self._started += time.perf_counter() - paused

    def timed_next(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns the next batch and counts the time that it was waited for."""
        started = time.perf_counter()
        batch = next(batches)
        self._data_wait_seconds += time.perf_counter() - started
        return batch

    def read(self) -> dict[str, float]:
        """Waits for the steps since the last call and returns their metrics."""
        sums, self.sums = jax.device_get([of_step() for of_step in self.sums]), []
        steps, seconds = len(sums), time.perf_counter() - self._started
        tokens = math.fsum(float(s["tokens"] + s["input_tokens"]) for s in sums)
        flops_per_second = self._flops_per_step * steps / seconds
        metrics = {
            **means(sums),
            "learning_rate": float(sums[-1]["learning_rate"]),
            "gradient_norm": float(sums[-1]["gradient_norm"]),
            "tokens_per_second": tokens / seconds,
            "step_seconds": seconds / steps,
            "data_wait_seconds": self._data_wait_seconds,
            "model_flops_per_second": flops_per_second,
            **self._once,
        }
        if self._peak_flops is not None:
            metrics["mfu_fraction"] = flops_per_second / self._peak_flops
        self._once = {}
        self.start()
        return metrics
