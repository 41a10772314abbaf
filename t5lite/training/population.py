"""Several runs in one program: their states stacked, one step for all of them, a folder for each.

What runs differ in are numbers, which are inputs of the program; here each is an array with one for
each place. A run that ends leaves its place to the next.
"""

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t5lite.core.errors import UserError
from t5lite.core.numbers import as_inputs
from t5lite.core.run_directory import Preempted, attempt
from t5lite.parallel.dispatch import DEPTH, settle
from t5lite.parallel.mesh import POPULATION, DeviceMesh
from t5lite.parallel.sharding import on_mesh
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.member import Evaluate, Member
from t5lite.training.preemption import stop_requests
from t5lite.training.program import TrainProgram, train_program
from t5lite.training.run import Run
from t5lite.training.step import make_train_step

# What runs of one population may differ in besides their numbers.
OWN = (
    *("model", "optimizer", "loss", "max_gradient_norm", "seed", "data_seed", "model_dir"),
    *("total_steps", "skip_batches", "initial_checkpoint"),
)


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A run that waits for a place.

    Args:
        config_text: what its `config.gin` is to hold.
        command: that would train it alone.
    """

    run: Run
    config_text: str
    command: Sequence[str]


@dataclasses.dataclass
class _Place:
    entrant: Entrant
    member: Member
    stack: contextlib.ExitStack


def train_population(
    entrants: Iterator[Entrant],
    size: int,
    mesh: DeviceMesh,
    *,
    evaluate: Callable[[Run], Evaluate],
    dropout: bool = True,
    on_scores: Callable[[Run, int, Mapping[str, float]], bool] = lambda run, step, scores: False,
    on_end: Callable[[Run, str | UserError], None] = lambda run, how: None,
) -> None:
    """Trains runs, `size` of them at a time, each as it would be alone.

    Where the mesh has an axis `population` they are split among its groups of devices.

    Args:
        entrants: asked for the next one whenever a place is free.
        evaluate: from a run to what scores its parameters.
        dropout: whether any of them has dropout: it is compiled for all, and a rate of 0 drops
            nothing.
        on_scores: is told of each evaluation and, but for that of step 0, says whether to end the
            run there.
        on_end: is told how each run ended: "finished", "pruned", or the error that ended it.

    Raises:
        UserError: where a run cannot be of one program with the others.
        Preempted: where SIGTERM asked to stop, once all runs are saved.
    """
    crew = _Crew(entrants, size, mesh, evaluate, on_scores, on_end, dropout)
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_mesh(mesh))
        stop = stack.enter_context(stop_requests())
        stack.push(crew.leave_all)
        crew.fill()
        results: collections.deque[Any] = collections.deque(maxlen=DEPTH)
        turn = 0
        while crew.places:
            turn += 1
            sums = crew.step()
            results.append(sums)
            settle(results, mesh)
            stopping = stop(turn)
            for index in sorted(crew.places):
                crew.account(index, sums, stopping=stopping)
            if stopping and crew.places:
                steps = [place.member.step for place in crew.places.values()]
                raise Preempted(min(steps))
            crew.fill()


class _Crew:
    """The places, and the arrays that hold what is in them."""

    def __init__(
        self,
        entrants: Iterator[Entrant],
        size: int,
        mesh: DeviceMesh,
        evaluate: Callable[[Run], Evaluate],
        on_scores: Callable[[Run, int, Mapping[str, float]], bool],
        on_end: Callable[[Run, str | UserError], None],
        dropout: bool,
    ) -> None:
        self.places: dict[int, _Place] = {}
        groups = mesh.shape.get(POPULATION, 1)
        # As many for each group of devices.
        self._size = -(-size // groups) * groups
        self._axis = POPULATION if groups > 1 else None
        self._entrants, self._mesh = entrants, mesh
        self._evaluate, self._dropout = evaluate, dropout
        self._on_scores, self._on_end = on_scores, on_end
        self._program: TrainProgram | None = None
        self._hyper: Any = None
        self._state: Any = None
        self._batches: list[dict[str, np.ndarray] | None] = [None] * self._size
        self._step: Any = None

    def fill(self) -> None:
        """Gives free places to those that wait."""
        for index in range(self._size):
            while index not in self.places and (entrant := next(self._entrants, None)):
                run = entrant.run
                if self._program is None:
                    self._program = train_program(run, self._mesh)
                check_alike(self._program.run, run, dropout=self._dropout)
                try:
                    scores = self._enter(index, entrant, self._program.of(run))
                except UserError as error:
                    self._on_end(run, error)
                    continue
                if scores is not None:
                    # Too early to end it; whether they are of use is told.
                    self._on_scores(run, 0, scores)

    def _enter(
        self, index: int, entrant: Entrant, program: TrainProgram
    ) -> dict[str, float] | None:
        run = entrant.run
        model_dir = pathlib.Path(run.model_dir)
        model_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(attempt(model_dir, entrant.command))
            member = stack.enter_context(
                Member(
                    program,
                    evaluate=self._evaluate(run),
                    config_text=entrant.config_text,
                    shown=False,
                )
            )
            if member.is_done:
                stack.close()
                self._on_end(run, "finished")
                return None
            if self._state is None:
                self._begin(program)
            hyper = as_inputs(_numbers(run, dropout=self._dropout))
            self._hyper = jax.tree.map(
                lambda all_of, one: _with(all_of, index, one), self._hyper, hyper
            )
            self._state = self._put(self._state, member.first_state, np.int32(index))
            scores = member.begin(compile_seconds=self._compile_seconds)
            self.places[index] = _Place(entrant, member, stack.pop_all())
            return scores

    def _begin(self, program: TrainProgram) -> None:
        """Compiles the one program, and makes room for all states."""
        started = time.perf_counter()
        run, size = program.run, self._size
        hyper = as_inputs(_numbers(run, dropout=self._dropout))
        self._hyper = jax.tree.map(lambda x: np.stack([x] * size), hyper)
        state, batch = (_stacked(size, tree, self._axis) for tree in (program.state, program.batch))
        shardings = jax.tree.map(lambda x: x.sharding, state)
        zeros = jax.jit(
            lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state),
            out_shardings=shardings,
        )
        self._state = zeros()
        step = make_train_step(run.model, program.param_axes, microbatches=run.microbatches)
        of_all = jax.vmap(step, spmd_axis_name=self._axis)
        jitted = jax.jit(of_all, donate_argnums=1, out_shardings=(shardings, None))
        self._step = jitted.lower(self._hyper, state, batch).compile()
        self._put = jax.jit(
            lambda all_of, one, index: jax.tree.map(lambda a, x: a.at[index].set(x), all_of, one),
            donate_argnums=0,
            out_shardings=shardings,
        )
        self._take = jax.jit(
            lambda all_of, index: jax.tree.map(
                lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), all_of
            ),
            out_shardings=jax.tree.map(lambda x: x.sharding, program.state),
        )
        self._shardings = {name: x.sharding for name, x in batch.items()}
        self._compile_seconds = time.perf_counter() - started

    def step(self) -> Any:
        """Takes a step in all places; in one that is free it means nothing."""
        for index, place in self.places.items():
            self._batches[index] = place.member.next_batch()
        some = next(batch for batch in self._batches if batch is not None)
        rows = [batch or some for batch in self._batches]
        stacked = {
            name: jax.device_put(np.stack([batch[name] for batch in rows]), sharding)
            for name, sharding in self._shardings.items()
        }
        self._state, sums = self._step(self._hyper, self._state, stacked)
        return sums

    def account(
        self,
        index: int,
        sums: Any,
        *,
        stopping: bool,
    ) -> None:
        """Tells the run in a place of its step, and lets it go where it has ended."""
        place = self.places[index]
        member, run = place.member, place.entrant.run
        try:
            scores = member.took(
                lambda: {name: np.asarray(of_all)[index] for name, of_all in sums.items()},
                lambda: self._take(self._state, np.int32(index)),
                stopping=stopping,
            )
        except UserError as error:
            self._leave(index, error)
            self._on_end(run, error)
            return
        if scores is not None and member.step < run.total_steps:
            if self._on_scores(run, member.step, scores):
                self._leave(index, Preempted(member.step))
                self._on_end(run, "pruned")
        elif member.step >= run.total_steps:
            try:
                self._leave(index, None)
            except UserError as error:
                # Its last checkpoint, perhaps.
                self._on_end(run, error)
            else:
                self._on_end(run, "finished")

    def _leave(self, index: int, error: BaseException | None) -> None:
        stack = self.places.pop(index).stack
        if error is None:
            stack.close()
        else:
            stack.__exit__(type(error), error, None)

    def leave_all(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Closes all runs behind an error, or behind a `Preempted`, for which they are saved."""
        del kind, trace
        for index in list(self.places):
            with contextlib.suppress(UserError):
                self._leave(index, error)


def check_alike(first: Run, run: Run, *, dropout: bool) -> None:
    """Raises a UserError where two runs are not of one program."""
    for field in dataclasses.fields(Run):
        mine, theirs = getattr(run, field.name), getattr(first, field.name)
        if field.name not in OWN and mine != theirs:
            raise UserError(
                f"train.{field.name} must be the same in all runs of one program, got {theirs!r} "
                f"and {mine!r}; vary numbers, or sweep without --vectorized"
            )
    models = [_without_dropout(r) for r in (first, run)]
    if models[0] != models[1]:
        raise UserError(
            f"runs of one program need the same model, but for its dropout rate, got {models[0]} "
            f"and {models[1]}; sweep without --vectorized"
        )
    trees = [str(jax.tree.structure(_numbers(r, dropout=dropout))) for r in (first, run)]
    if trees[0] != trees[1]:
        raise UserError(
            "runs of one program differ in numbers only, got other choices of optimizer, schedule "
            "or loss; sweep without --vectorized"
        )


def _without_dropout(run: Run) -> Any:
    config = dataclasses.replace(run.model.config, dropout_rate=0.0)
    return run.model.clone(config=config)


def _numbers(run: Run, *, dropout: bool) -> Hyperparameters:
    rate = run.model.config.dropout_rate
    return dataclasses.replace(run.hyperparameters, dropout_rate=rate if dropout else rate or None)


def _with(all_of: np.ndarray, index: int, one: np.ndarray) -> np.ndarray:
    changed = all_of.copy()
    changed[index] = one
    return changed


def _stacked(size: int, tree: Any, axis: str | None) -> Any:
    """Shapes with a dimension for the places before all others, split by a mesh axis or none."""

    def stack(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        assert isinstance(x.sharding, NamedSharding)
        sharding = NamedSharding(x.sharding.mesh, PartitionSpec(axis, *x.sharding.spec))
        return jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=sharding)

    return jax.tree.map(stack, tree)
