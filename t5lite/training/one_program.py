"""Which runs may train in one program: those that differ in its inputs only."""

import dataclasses
from typing import Any

import jax

from t5lite.core.errors import UserError
from t5lite.core.fields import field_name
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.run import Run

# Fields of a run in which the trials of one program may differ besides their numbers.
OWN_FIELDS = (
    "model",
    "optimizer",
    "loss",
    "max_gradient_norm",
    "bad_steps",
    "train_first",
    "layer_rates",
    "moving_average",
    "rank_budget",
    "seed",
    "data_seed",
    "model_dir",
    "total_steps",
    "early_stopping",
    "skip_batches",
    "initial_checkpoint",
    "on_damage",
    "writers",
)


def check_one_program(first: Run, run: Run, *, dropout: bool) -> None:
    """Checks that `run` can train in the program of `first`.

    Args:
        dropout: whether any of the trials has dropout.

    Raises:
        UserError: naming what differs.
    """
    if run.offload_optimizer:
        raise UserError(
            f"{field_name(run, 'offload_optimizer')} must be False in a vectorized sweep, whose "
            "states are on the devices together; sweep without --vectorized"
        )
    for field in dataclasses.fields(Run):
        mine = getattr(run, field.name)
        theirs = getattr(first, field.name)
        if field.name not in OWN_FIELDS and mine != theirs:
            raise UserError(
                f"{field_name(run, field.name)} must be the same in all runs of one program, got "
                f"{theirs!r} and {mine!r}; vary numbers, or sweep without --vectorized"
            )
    models = [_without_dropout(each) for each in (first, run)]
    if models[0] != models[1]:
        raise UserError(
            f"runs of one program need the same model, but for its dropout rate, got {models[0]} "
            f"and {models[1]}; sweep without --vectorized"
        )
    trees = [str(jax.tree.structure(numbers_of(each, dropout=dropout))) for each in (first, run)]
    if trees[0] != trees[1]:
        raise UserError(
            "runs of one program differ in numbers only, got other choices of optimizer, schedule, "
            "loss, bad steps, train_first, layer_rates, "
            "moving_average or rank_budget; sweep without --vectorized"
        )


def numbers_of(run: Run, *, dropout: bool) -> Hyperparameters:
    """Returns the numbers of a run, with a dropout rate if `dropout` or if it has one."""
    rate = run.model.config.dropout_rate
    return dataclasses.replace(run.hyperparameters, dropout_rate=rate if dropout else rate or None)


def _without_dropout(run: Run) -> Any:
    config = dataclasses.replace(run.model.config, dropout_rate=0.0)
    return run.model.clone(config=config)
