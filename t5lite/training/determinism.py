"""Whether steps that are taken again from the same state and batches give the same bits."""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from t5lite.core.batches import Batch
from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.losses.loss import LossSums
from t5lite.parallel.dispatch import settle
from t5lite.parallel.processes import everywhere
from t5lite.parallel.sharding import batch_sharding, make_global, on_mesh
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.checkpoints import Checkpoints
from t5lite.training.feed import open_feed
from t5lite.training.frozen import load_frozen
from t5lite.training.program import TrainProgram
from t5lite.training.restore import about_checkpoint, new_state, resume_latest
from t5lite.training.state import TrainState
from t5lite.training.step import compile_once
from t5lite.training.stored_checkpoints import StoredCheckpoints

# The parts of each array that this process has, by name.
_Parts = Mapping[str, list[np.ndarray]]


def verify_determinism(program: TrainProgram, num_steps: int) -> str:
    """Takes the next steps of a run three times, and compares batches, sums and states bitwise.

    The first two replays start alike, with data and state made again; the third saves and restores
    both halfway. Nothing in MODEL_DIR changes, and the host needs memory for a copy of the state.

    Returns:
        A line that says what was equal.

    Raises:
        UserError: naming the first array that differs.
    """
    train_step = compile_once(program, lambda line: None)().step
    model_dir = pathlib.Path(program.run.model_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_mesh(program.mesh))
        scratch = stack.enter_context(_scratch(model_dir))
        source = StoredCheckpoints(model_dir / FOLDER)
        frozen = load_frozen(program.frozen, _ignore)

        def take(state: TrainState, batch: Batch) -> tuple[TrainState, LossSums]:
            return train_step(program.hyper, state, batch, frozen)

        first = dict(_replay(program, take, source, num_steps))
        compared = 0
        for how, save_in in (("", None), (" after a save and restore", scratch / "saved")):
            replay = _replay(program, take, source, num_steps, save_in=save_in)
            for (what, parts), expected in zip(replay, first.values(), strict=True):
                difference = _first_difference(expected, parts)
                if not everywhere(difference is None):
                    raise UserError(
                        f"training is not deterministic: {what}: "
                        f"{difference or 'an array of another process'} differs{how}; report it "
                        "with this command and the environment.json of the run"
                    )
                compared += len(parts)
    return (
        f"deterministic: {num_steps} steps taken again, and once more across a save and restore, "
        f"are bitwise equal in all {compared} arrays of batches, sums and states"
    )


def _replay(
    program: TrainProgram,
    take: Callable[[TrainState, Batch], tuple[TrainState, LossSums]],
    source: StoredCheckpoints,
    num_steps: int,
    *,
    save_in: pathlib.Path | None = None,
) -> Iterator[tuple[str, _Parts]]:
    """Yields the arrays of each batch and of its sums, and at last those of the state, by name.

    Args:
        take: from a state and a batch to the next state and the sums of the step.
        save_in: a folder in which state and position in the data are saved halfway, and from which
            they are restored; None for neither.
    """
    run = program.run
    to_devices = make_global(batch_sharding(program.mesh, run.batch_size), run.batch_size)
    start, state = resume_latest(program, source, _ignore)
    state = state or new_state(program, source, _ignore)
    feed = open_feed(program, start.data, skip=start.skip, log=_ignore)
    try:
        for number in range(num_steps):
            if save_in is not None and number == num_steps // 2:
                with contextlib.closing(Checkpoints(save_in)) as saved:
                    about = about_checkpoint(program, rank=None, data=feed.state())
                    saved.saved_base = source.saved_base
                    saved.save(int(state.step), state, about)
                feed.close()
                resumed, state = resume_latest(program, StoredCheckpoints(save_in), _ignore)
                assert state is not None
                feed = open_feed(program, resumed.data, skip=start.skip, log=_ignore)
            batch = to_devices(next(feed))
            yield f"batch {feed.number}", _parts(batch)
            state, sums = take(state, batch)
            settle([sums], program.mesh)
            yield f"sums of step {start.step + number + 1}", _parts(sums)
        yield f"state after {num_steps} steps", _parts(state)
    finally:
        feed.close()


def _parts(tree: Any) -> _Parts:
    # Copies: the buffers of a donated state are used again.
    return {
        name: [np.array(shard.data) for shard in leaf.addressable_shards]
        for name, leaf in by_name(tree).items()
    }


def _first_difference(expected: _Parts, got: _Parts) -> str | None:
    """Returns the name of the first array with other bits, and how many numbers differ."""
    for name, parts in expected.items():
        differing = 0
        for a, b in zip(parts, got[name], strict=True):
            differing += int(np.sum(np.any(_bytes(a) != _bytes(b), axis=1)))
        if differing:
            size = sum(part.size for part in parts)
            return f"{name} ({differing} of {size} numbers)"
    return None


def _bytes(x: np.ndarray) -> np.ndarray:
    """Returns the bytes of each number [n, bytes]: NaN equals itself, and 0 differs from -0."""
    return np.frombuffer(x.tobytes(), np.uint8).reshape(x.size, x.dtype.itemsize)


@contextlib.contextmanager
def _scratch(model_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder beside MODEL_DIR, where all processes can write, and deletes it."""
    folder = model_dir.with_name(f"{model_dir.name}.determinism")
    if not everywhere(not folder.exists()):
        raise UserError(f"{folder} must not exist, because it is deleted at the end; move it away")
    try:
        yield folder
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _ignore(line: str) -> None:
    del line
