"""The training loop, in the order in which it happens.

One turn: take a batch, step, and where it is due log, evaluate, save.
"""

import collections
import contextlib
import time
from typing import Any

from t5lite.core.run_directory import Preempted
from t5lite.parallel.dispatch import DEPTH, settle
from t5lite.parallel.sharding import batch_sharding, make_global, on_mesh
from t5lite.training.member import Evaluate, Member, given
from t5lite.training.preemption import stop_requests
from t5lite.training.program import TrainProgram
from t5lite.training.state import TrainState


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
    place = make_global(batch_sharding(mesh, run.batch_size), run.batch_size)
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_mesh(mesh))
        stop = stack.enter_context(stop_requests())
        member = stack.enter_context(Member(program, evaluate=evaluate, config_text=config_text))
        state = member.first_state
        if member.is_done:
            return state
        started = time.perf_counter()
        compiled = program.lower().compile()
        member.begin(compile_seconds=time.perf_counter() - started)
        results: collections.deque[Any] = collections.deque(maxlen=DEPTH)
        while member.step < run.total_steps:
            state, sums = compiled(program.hyper, state, place(member.next_batch()))
            results.append(sums)
            settle(results, mesh)
            stopping = stop(member.step + 1) and member.step + 1 < run.total_steps
            member.took(given(sums), given(state), stopping=stopping)
            if stopping:
                raise Preempted(member.step)
    return state
