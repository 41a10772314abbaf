"""The training loop, in the order in which it happens; the only place with time and side effects.

One turn: take a batch, step, and where it is due log, evaluate, save.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from t5lite.core.due import due
from t5lite.core.errors import UserError
from t5lite.core.files import write_whole
from t5lite.core.run_directory import Preempted, write_result
from t5lite.models.description import describe
from t5lite.models.flops import train_flops
from t5lite.models.losses import means
from t5lite.parallel.dispatch import settle
from t5lite.parallel.hardware import device_of
from t5lite.parallel.sharding import batch_sharding, local_rows, make_global, on_mesh
from t5lite.training.checkpoints import FOLDER, Checkpoints, open_checkpoint
from t5lite.training.feed import Feed
from t5lite.training.metrics import MetricWriter, NoWriter
from t5lite.training.partial_restore import as_table, restore_by_rules
from t5lite.training.preemption import stop_requests
from t5lite.training.program import TrainProgram
from t5lite.training.progress import Progress
from t5lite.training.run import Run
from t5lite.training.state import TrainState, initial_opt_state, initial_state
from t5lite.training.step import Sums

Evaluate = Callable[[Any], dict[str, float]]


def train(program: TrainProgram, *, evaluate: Evaluate, config_text: str) -> TrainState:
    """Trains to `total_steps`, from the latest checkpoint in `model_dir` if there is one.

    Args:
        program: of the run, from `train_program`.
        evaluate: from parameters to the scores of the run's evaluation split.
        config_text: what `config.gin` is to hold; written once the run is known to fit.

    Returns:
        The state after the last step.

    Raises:
        UserError: where a checkpoint does not fit, or the loss is no longer finite.
        Preempted: where SIGTERM asked it to stop, once its state is saved.
    """
    run, mesh = program.run, program.mesh
    model_dir, first = pathlib.Path(run.model_dir), jax.process_index() == 0
    sharding = batch_sharding(mesh, run.batch_size)
    rows, place = local_rows(sharding, run.batch_size), make_global(sharding, run.batch_size)
    ranked = bool(run.keep_highest or run.keep_lowest)
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_mesh(mesh))
        stop = stack.enter_context(stop_requests())
        checkpoints = stack.enter_context(
            contextlib.closing(
                Checkpoints(
                    model_dir / FOLDER,
                    keep=run.keep_checkpoints,
                    keep_every_steps=run.keep_every_steps,
                    keep_best=ranked,
                )
            )
        )
        checkpoints.check_room(program.state)
        is_new = not checkpoints.steps()
        first_step = _step_before(run) if is_new else checkpoints.steps()[-1]
        progress = stack.enter_context(
            Progress(first_step=first_step, total_steps=run.total_steps, shown=first)
        )
        saved = None if is_new else _saved(run, checkpoints)
        feed = Feed(run, rows, saved, say=progress.say)
        stack.enter_context(contextlib.closing(feed))
        state = first_state(program, checkpoints, progress)
        if 0 < first_step >= run.total_steps:
            progress.say(f"nothing to train: train.total_steps is {run.total_steps}")
            if first:
                write_result(model_dir, first_step)
            return state
        if first:
            write_whole(model_dir / "config.gin", config_text)
        writer = MetricWriter(model_dir, first_step=first_step) if first else NoWriter()
        stack.enter_context(contextlib.closing(writer))

        started = time.perf_counter()
        compiled = program.lower().compile()
        meter = Meter(run, compile_seconds=time.perf_counter() - started)

        def score(step: int) -> float | None:
            scores = evaluate(state.params)
            rank = run.rank(scores)
            writer.write(step, run.eval_split, scores)
            progress.score(step, run.eval_split, scores)
            return rank

        if is_new:
            score(first_step)
        meter.start()
        for step in range(first_step + 1, run.total_steps + 1):
            batch = place(meter.timed_next(feed))
            state, sums = compiled(program.hyper, state, batch)
            meter.sums.append(sums)
            settle(meter.sums, mesh)
            progress.advance(step)
            scoring = due(step, every=run.eval_every_steps, last=run.total_steps)
            saving = due(step, every=run.checkpoint_every_steps, last=run.total_steps)
            stopping = stop(step) and step < run.total_steps
            saving = saving or (scoring and ranked) or stopping
            if saving or due(step, every=run.log_every_steps):
                metrics = meter.read()
                # The gradient too: it is what the next loss would show.
                if not math.isfinite(metrics["loss_nats_per_token"] + metrics["gradient_norm"]):
                    raise UserError(
                        f"training diverged: loss or gradient is not finite at step {step}; "
                        f"checkpoints that are good: {checkpoints.steps() or 'none'}; "
                        "lower the learning rate or set train.max_gradient_norm"
                    )
                writer.write(step, "train", metrics)
                progress.report(step, metrics)
            with meter.paused():
                rank = score(step) if scoring else None
                # Last: all that is told of a step is written before there is a checkpoint of it.
                if saving:
                    told = {**about(run), "rank": rank, "data": feed.state()}
                    checkpoints.save(step, state, told)
            if stopping:
                raise Preempted(step)
    # Now that the last checkpoint is whole.
    if first:
        write_result(model_dir, run.total_steps)
    return state


def about(run: Run) -> dict[str, Any]:
    """Returns what a checkpoint says of the run, besides where its data stands."""
    return {
        "seed": run.seed,
        "model": describe(run.model),
        "vocabulary": run.task.vocabulary.describe(),
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
    # Run once: on a CPU most of the time of compiling it would go into making it fast.
    on_cpu = program.mesh.platform == "cpu"
    init = jax.jit(
        lambda h: initial_state(run.model, h, axes, run.param_dtype),
        out_shardings=shardings,
        compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
    )
    state = init(hyper)
    if run.initial_checkpoint is not None:
        with open_checkpoint(run.initial_checkpoint) as (source, step):
            if run.restore_optimizer:
                if "opt_state" not in source.metadata(step):
                    raise UserError(
                        f"train.restore_optimizer: {run.initial_checkpoint} holds no state of an "
                        "optimizer; one of T5X has it if converted with convert.optimizer_state"
                    )
                progress.say(f"starting from step and state of {run.initial_checkpoint}")
                return source.restore(step, shapes)
            params, origins = restore_by_rules(source, step, state.params, run.restore_rules)
        progress.say(f"starting from the parameters of {run.initial_checkpoint}")
        for line in as_table(origins) if run.restore_rules else ():
            progress.say(line)
        opt_state = jax.jit(
            lambda h, p: initial_opt_state(h, p, axes), out_shardings=shardings.opt_state
        )(hyper, params)
        state = dataclasses.replace(state, params=params, opt_state=opt_state)
    return state


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
        self.sums: list[Sums] = []
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
        sums, self.sums = jax.device_get(self.sums), []
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
