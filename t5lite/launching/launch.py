"""A launch: a command, the bindings that vary, and the folder that holds its trials.

`FOLDER/launch.json` records the launch, `FOLDER/trials/0007/` is the run directory of trial 7 with
its `log.txt`, and `FOLDER/study.journal` holds the trials. A launch of a single command is a sweep
of one trial.
"""

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, check_choice, suggestion
from t5lite.core.run_directory import curve, read_metrics
from t5lite.launching.sweeps.settings import METHODS, PRUNERS, num_settings, planned_settings
from t5lite.launching.sweeps.space import (
    MAX_VALUES,
    Scalar,
    check_no_repeats,
    gin_flags,
    parse_space,
)

TRIALS_FOLDER = "trials"
LOG = "log.txt"
LAUNCHABLE = ("train", "eval", "infer")


def launch_reference(folder: pathlib.Path) -> str:
    """Returns the arguments that name the launch of a folder to `t5lite launch status`."""
    parent = folder.absolute().parent
    elsewhere = (
        "" if parent == pathlib.Path("runs").absolute() else f" --dir={shlex.quote(str(parent))}"
    )
    return f"{folder.name}{elsewhere}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What is launched, and where.

    Args:
        folder: the folder of the launch.
        command: "train", "eval" or "infer".
        flags: the flags of the command.
        engine: the value of `--on`: "local", "slurm", "slurm:PARTITION", "tpu:SLICE", "gke:SLICE",
            or "module:Class" for an engine from outside the package.
        working_dir: the folder in which the command starts.
        parallel: trials that run at once; None for the engine's default.
        vectorized: trials that train in one program in this process; None for a process each.
        max_failures: restarts of a trial after a crash; restarts after a preemption are free.
        resources: what is requested from the engine, by field of its resource class.
        space: the bindings that vary, as `parse_space` reads them.
        listed: alternatively the settings of the trials one by one.
        method: how settings are chosen.
        trials: number of trials, if the method does not determine it.
        prune: "asha" or "hyperband"; None to run all trials to their end.
        objective: a metric of the evaluation, or "train/NAME" or "SPLIT/NAME" of another split.
        maximize: whether a higher objective is better.
        seed: seed of the sampled settings.
        allow_repeats: whether a setting may run twice.
        first_score: the first step after the start at which the run is evaluated.
        last_step: the number of steps of the run.
        config: a digest of everything that gin binds in the first trial.

    Raises:
        UserError: if the fields contradict each other.
    """

    folder: str
    command: str
    flags: Sequence[str]
    engine: str
    working_dir: str
    parallel: int | None = None
    vectorized: int | None = None
    max_failures: int = 3
    resources: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    space: Mapping[str, str] = dataclasses.field(default_factory=dict)
    listed: Sequence[Mapping[str, Scalar]] = dataclasses.field(default_factory=list)
    method: str = "grid"
    trials: int | None = None
    prune: str | None = None
    objective: str = "cross_entropy_nats_per_token"
    maximize: bool = False
    seed: int = 0
    allow_repeats: bool = False
    first_score: int | None = None
    last_step: int | None = None
    config: str | None = None

    def __post_init__(self) -> None:
        check_choice("the command after --", self.command, LAUNCHABLE)
        check_choice("--method", self.method, METHODS)
        if self.prune is not None:
            check_choice("--prune", self.prune, PRUNERS)
            if self.first_score is None:
                raise UserError("--prune needs intermediate scores; bind train.eval_every_steps")
        if self.vectorized and self.command != "train":
            raise UserError(f"--vectorized is for train, got {self.command}")
        if self.vectorized and self.parallel:
            raise UserError("--vectorized and --parallel are mutually exclusive")
        if not self.is_sweep and (self.trials or self.method != "grid" or self.prune):
            raise UserError("--trials, --method and --prune need a --sweep or --sweep_file")
        if self.trials is not None and not 1 <= self.trials <= MAX_VALUES:
            raise UserError(f"--trials must be from 1 to {MAX_VALUES:,}, got {self.trials}")
        if self.seed < 0:
            raise UserError(f"--seed must be at least 0, got {self.seed}")
        if self.method == "list" and not self.listed:
            raise UserError("--method=list needs a --sweep_file that binds sweep.listed")
        if self.command != "train" and self.is_sweep:
            raise UserError(f"--sweep is for train, got {self.command}")
        if self.listed and self.space:
            raise UserError("--sweep and sweep.listed are mutually exclusive")
        if not self.allow_repeats:
            check_no_repeats(parse_space(self.space))
        if any(row.keys() != self.listed[0].keys() for row in self.listed):
            raise UserError("all trials of sweep.listed must bind the same names")

    @property
    def is_sweep(self) -> bool:
        """Whether any binding varies."""
        return bool(self.space or self.listed)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return pathlib.Path(self.folder).name

    @property
    def reference(self) -> str:
        """The arguments that name this launch to `t5lite launch status`."""
        return launch_reference(pathlib.Path(self.folder))

    @property
    def planned(self) -> list[dict[str, Scalar]]:
        """The settings of all trials; none for a method that learns from earlier trials."""
        return planned_settings(
            "list" if self.listed else self.method,
            parse_space(self.space),
            trials=self.trials,
            listed=[dict(row) for row in self.listed],
            seed=self.seed,
            allow_repeats=self.allow_repeats,
        )

    @property
    def num_trials(self) -> int:
        """Number of trials, at most the number of settings of a finite space."""
        size = num_settings(parse_space(self.space)) if self.space else None
        trials = self.trials or 1
        return len(self.planned) or (trials if self.allow_repeats else min(trials, size or trials))

    @property
    def space_or_listed(self) -> Mapping[str, str]:
        """The search space; for listed trials, the values that occur in them."""
        names = self.listed[0] if self.listed else ()
        listed = {n: repr(list(dict.fromkeys(row[n] for row in self.listed))) for n in names}
        return self.space or listed

    def trial_name(self, number: int) -> str:
        """Returns the name of a trial outside the launch, such as that of a JobSet."""
        return f"{self.name}-{number:04d}"

    def model_dir(self, number: int) -> pathlib.Path:
        """Returns the run directory of a trial."""
        return pathlib.Path(self.folder) / TRIALS_FOLDER / f"{number:04d}"

    def arguments(self, number: int, params: Mapping[str, Scalar]) -> list[str]:
        """Returns the arguments of `t5lite` for a trial."""
        if self.command != "train":
            return [self.command, *self.flags]
        own = f"--gin.MODEL_DIR={self.model_dir(number)}"
        return [self.command, *self.flags, *gin_flags(params), own]

    def scores(self, number: int) -> list[tuple[int, float]]:
        """Returns the steps and values of the objective that a trial has recorded, in order.

        Raises:
            UserError: if the trial was evaluated and its records hold no such metric.
        """
        metrics = read_metrics(self.model_dir(number))
        split = self.objective.rpartition("/")[0]
        wanted = [m for m in metrics if (m["split"] == "train") == (split == "train")]
        recorded = {key for m in wanted for key in m if key not in ("step", "split")}
        short = self.objective.rpartition("/")[2]
        is_evaluated = any(m["split"] != "train" for m in metrics)
        if is_evaluated and not {self.objective, short} & recorded:
            raise UserError(
                f"the objective must be a metric of the run, got {self.objective!r}; "
                f"{suggestion(short, recorded)}"
            )
        return curve(metrics, self.objective)
