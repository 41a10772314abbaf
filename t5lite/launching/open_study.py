"""The study of a launch."""

import pathlib

from t5lite.launching.launch import Launch
from t5lite.launching.sweeps.space import parse_space
from t5lite.launching.sweeps.study import Study, pruner_of


def open_study(launch: Launch) -> Study:
    """Opens the trials of a launch, planning those that are not planned yet."""
    study = Study(
        pathlib.Path(launch.folder),
        parse_space(launch.space_or_listed),
        maximize=launch.maximize,
        pruner=pruner_of(
            launch.prune, first_step=launch.first_score or 1, last_step=launch.last_step or 1
        ),
        seed=launch.seed,
        allow_repeats=launch.allow_repeats,
    )
    study.plan(launch.planned)
    return study
