"""Where trials can run: some engines are watched from here, others do all by themselves."""

from collections.abc import Sequence
from types import ModuleType

from t5lite.launching.engines import gke, local, slurm
from t5lite.launching.engines.tpu import queued_resources as tpu
from t5lite.launching.launch import Launch
from t5lite.launching.sweeps.study import Study
from t5lite.launching.trial import Engine

MODULES = {"local": local, "slurm": slurm, "tpu": tpu, "gke": gke}


def module_of(launch: Launch) -> ModuleType:
    """Returns the module of a launch's engine: `check`, `text`, `active` and `cancel`.

    `check` returns what is to be said beside `text`, "" for nothing.
    """
    return MODULES[launch.engine.partition(":")[0]]


def watched(launch: Launch) -> Engine | None:
    """Returns the engine of a launch whose trials are watched from here; None of another one."""
    module = module_of(launch)
    if module is local:
        return local.Here(launch)
    return tpu.Slices(launch) if module is tpu else None


def reads_files_here(launch: Launch) -> bool:
    """Whether trials read the run files of now; slices and pods have those of the beginning."""
    return module_of(launch) in (local, slurm)


def reconcile(launch: Launch, study: Study) -> None:
    """Tells the study what has ended where no process of ours was told of it."""
    if module_of(launch) is gke:
        gke.reconcile(launch, study)


def give_back(launch: Launch, numbers: Sequence[int]) -> None:
    """Gives back the machines that trials which have ended still hold."""
    if module_of(launch) is tpu:
        tpu.give_back(launch, numbers)
