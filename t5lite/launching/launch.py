"""A launch: a command, what is varied of it, and the folder in which all of it is kept.

`FOLDER/launch.json` says what was launched, `FOLDER/trials/0007/` is the run directory of
trial 7 with its `log.txt`, `FOLDER/study.journal` holds the trials. A launch of a single command is
a sweep of one.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, check_choice, suggestion
from t5lite.core.files import write_atomically
from t5lite.core.run_directory import curve, read_metrics
from t5lite.launching.sweeps.space import Scalar, bindings, parse_space
from t5lite.launching.sweeps.study import METHODS, PRUNERS, Study, planned, pruner_of

SPEC, TRIALS, LOG, LOCK = "launch.json", "trials", "log.txt", "launch.lock"
COMMANDS = ("train", "eval", "infer")
# What may differ when a launch is taken up again: it changes no result.
FREE = ("engine", "parallel", "vectorized", "max_failures", "resources")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What is launched.

    Args:
        folder: where all of it is kept.
        command: "train", "eval" or "infer".
        flags: of the command.
        engine: "local", "slurm" or "slurm:PARTITION", "tpu:SLICE" or "gke:SLICE".
        working_dir: where the command is started.
        parallel: trials that run at once; None for all on Slurm and GKE, else one.
        vectorized: trials that train in one program here; None for a process each.
        max_failures: restarts of a trial after a crash; restarts after a preemption are free.
        resources: what the engine is asked for, by name.
        space: bindings that are varied, to what `parse_space` reads.
        listed: or the trials one by one.
        method: how values are chosen.
        trials: how many, where the method does not say.
        prune: "asha" or "hyperband"; None to let every trial end.
        objective: a metric of the evaluation, or "train/NAME" or "SPLIT/NAME" of another split.
        maximize: whether higher is better.
        seed: of what is drawn.
        first_score, last_step: of the run: its first evaluation after the start, and its end.
        config: a digest of all that gin binds in the first trial.

    Raises:
        UserError: where they do not fit together.
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
    first_score: int | None = None
    last_step: int | None = None
    config: str | None = None

    def __post_init__(self) -> None:
        check_choice("the command behind --", self.command, COMMANDS)
        check_choice("--method", self.method, METHODS)
        if self.prune is not None:
            check_choice("--prune", self.prune, PRUNERS)
            if self.first_score is None:
                raise UserError("--prune needs scores on the way: bind train.eval_every_steps")
        if self.vectorized and (self.engine != "local" or self.command != "train"):
            raise UserError(
                f"--vectorized is for --on=local and train, got {self.engine} and {self.command}"
            )
        if self.vectorized and (self.parallel or self.resources.get("processes")):
            raise UserError("--vectorized goes with neither --parallel nor --processes")
        if not self.is_sweep and (self.trials or self.method != "grid" or self.prune):
            raise UserError("--trials, --method and --prune are for what --sweep varies")
        if self.method == "list" and not self.listed:
            raise UserError("--method=list needs a --sweep_file with sweep.listed")
        if self.command != "train" and self.is_sweep:
            raise UserError(f"--sweep is for train, got {self.command}")
        if self.listed and self.space:
            raise UserError("--sweep and a list of trials cannot both be there")
        if any(row.keys() != self.listed[0].keys() for row in self.listed):
            raise UserError("trials of a list must all bind the same names")

    @property
    def is_sweep(self) -> bool:
        """Whether anything is varied."""
        return bool(self.space or self.listed)

    @property
    def name(self) -> str:
        """The folder's."""
        return pathlib.Path(self.folder).name

    @property
    def reference(self) -> str:
        """What to write behind `t5lite launch status`."""
        parent = pathlib.Path(self.folder).parent
        elsewhere = "" if parent == pathlib.Path("runs").absolute() else f" --dir={parent}"
        return f"{self.name}{elsewhere}"

    @property
    def rows(self) -> list[dict[str, Scalar]]:
        """The parameters of all trials; none of a method that learns from those before."""
        return planned(
            "list" if self.listed else self.method,
            parse_space(self.space),
            trials=self.trials,
            listed=[dict(row) for row in self.listed],
            seed=self.seed,
        )

    @property
    def num_trials(self) -> int:
        """How many trials there are to be."""
        return len(self.rows) or self.trials or 1

    def trial_name(self, number: int) -> str:
        """Returns what engines call a trial of this launch."""
        return f"{self.name}-{number:04d}"

    def model_dir(self, number: int) -> pathlib.Path:
        """Returns the run directory of a trial."""
        return pathlib.Path(self.folder) / TRIALS / f"{number:04d}"

    def arguments(self, number: int, params: Mapping[str, Scalar]) -> list[str]:
        """Returns what goes behind `t5lite` for a trial."""
        if self.command != "train":
            return [self.command, *self.flags]
        own = f"--gin.MODEL_DIR={self.model_dir(number)}"
        return [self.command, *self.flags, *bindings(params), own]

    def study(self) -> Study:
        """Opens the launch's trials; those that are planned are there."""
        names = self.listed[0] if self.listed else ()
        listed = {n: repr(list(dict.fromkeys(row[n] for row in self.listed))) for n in names}
        study = Study(
            pathlib.Path(self.folder),
            parse_space(self.space or listed),
            maximize=self.maximize,
            pruner=pruner_of(
                self.prune, first_step=self.first_score or 1, last_step=self.last_step or 1
            ),
            seed=self.seed,
        )
        study.plan(self.rows)
        return study

    def scores(self, number: int) -> list[tuple[int, float]]:
        """Returns the steps and values of the objective that a trial has told, in order.

        Raises:
            UserError: where it was evaluated and there is no such metric.
        """
        metrics = read_metrics(self.model_dir(number))
        split = self.objective.rpartition("/")[0]
        wanted = [m for m in metrics if (m["split"] == "train") == (split == "train")]
        told = {key for m in wanted for key in m if key not in ("step", "split")}
        short = self.objective.rpartition("/")[2]
        is_evaluated = any(m["split"] != "train" for m in metrics)
        if is_evaluated and not {self.objective, short} & told:
            raise UserError(
                f"the objective must be a metric of the run, got {self.objective!r}; "
                f"{suggestion(short, told)}"
            )
        return curve(metrics, self.objective)


def save(launch: Launch) -> None:
    """Writes `launch.json`, unless the folder belongs to something else.

    Raises:
        UserError: where it does, naming what is different.
    """
    folder = pathlib.Path(launch.folder)
    mine = _as_json(launch)
    if (folder / SPEC).exists():
        theirs = _as_json(read(folder))
        for name, value in mine.items():
            if name not in FREE and theirs[name] != value:
                raise UserError(
                    f"{folder} belongs to another launch: {name} is {theirs[name]!r} there, got "
                    f"{value!r}; use another --name, or `t5lite launch resume {launch.reference}`"
                )
    else:
        check_folder(folder)
    (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SPEC, json.dumps(mine, indent=1) + "\n")


def check_folder(folder: pathlib.Path) -> None:
    """Raises a UserError where a folder holds something, but no launch."""
    # One that was killed while it began leaves no more than these.
    begun = (LOCK, SPEC, TRIALS)
    if folder.exists() and not (folder / SPEC).exists():
        others = [path.name for path in folder.iterdir() if not path.name.startswith(begun)]
        if others or ((folder / TRIALS).exists() and any((folder / TRIALS).iterdir())):
            raise UserError(f"{folder} is there and holds no launch; use another --name")


def _as_json(launch: Launch) -> dict[str, Any]:
    """As it is written: without its folder, which may be moved."""
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(launch)))
    del document["folder"]
    return document


def read(folder: pathlib.Path) -> Launch:
    """Returns the launch that is kept in a folder.

    Raises:
        UserError: where there is none.
    """
    try:
        return Launch(**json.loads((folder / SPEC).read_text()), folder=str(folder.absolute()))
    except FileNotFoundError as error:
        siblings = sorted(path.parent.name for path in folder.parent.glob(f"*/{SPEC}"))
        hint = suggestion(folder.name, siblings) if siblings else "it holds none"
        raise UserError(f"there is no launch {folder.name!r} in {folder.parent}; {hint}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / SPEC} cannot be read: {error}") from error
