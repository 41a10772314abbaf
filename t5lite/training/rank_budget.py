"""The rank budget of AdaLoRA: which singular values stay, decided inside the compiled step."""

import bisect
import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from t5lite.core.errors import UserError
from t5lite.core.fields import check_counts, check_fields, field_error
from t5lite.core.lazy import by_name
from t5lite.core.numbers import Number, numeric, static
from t5lite.models.adalora import ADALORA_DOWN, ADALORA_UP, ADALORA_VALUES

_PARTS = (ADALORA_DOWN, ADALORA_VALUES, ADALORA_UP)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RankScores:
    """How important the parameters of AdaLoRA were in recent steps; or what a `TrainState` holds.

    Args:
        sensitivity: mean of |parameter * gradient|, a tree of these parameters.
        uncertainty: mean of the absolute difference between both.
    """

    sensitivity: Any
    uncertainty: Any


@numeric
class RankBudget:
    """Lowers the mean rank of all maps with AdaLoRA from `AdaLoRA.rank` to `target_rank`.

    After each step a singular value and its two vectors have a score: sensitivity times uncertainty
    of the value, plus the means of the same over the elements of each vector. Up to `initial_steps`
    no value is removed. Then the budget, a number of values, falls with the cube of the steps that
    are left, and the values with the lowest scores of all maps are set to 0; later gradients may
    bring them back, until `final_steps` before the end the choice is final. Maps may end with
    different ranks, also with 0. A bad step changes neither scores nor values.

    Args:
        target_rank: mean number of singular values per map at the end.
        total_steps: number of steps of the run.
        initial_steps: steps before the first value is removed.
        final_steps: steps at the end in which the choice stays.
        every_steps: how often values are removed.
        sensitivity_decay, uncertainty_decay: weights of the means so far, in (0, 1).
        orthogonality_weight: of the mean over both factors F of all maps of |F^T F - I|, which
            training adds to the loss per token. Evaluation does not.

    Raises:
        UserError: if a number is out of range, or no step is left to remove values.

    Source: Zhang et al. 2023, sections 3.2 and 3.3;
        huggingface/peft@v0.21.2:src/peft/tuners/adalora, where steps are counted from 1.
    """

    target_rank: int = static(default=8)
    total_steps: int = static()
    initial_steps: int = static(default=0)
    final_steps: int = static(default=0)
    every_steps: int = static(default=1)
    sensitivity_decay: Number = 0.85
    uncertainty_decay: Number = 0.85
    orthogonality_weight: Number = 0.5

    def __post_init__(self) -> None:
        check_counts(self, "target_rank", "total_steps", "every_steps")
        rule = "a whole number from 0"
        phases = ("initial_steps", "final_steps")
        check_fields(self, phases, rule, lambda n: isinstance(n, int) and n >= 0)
        decays = ("sensitivity_decay", "uncertainty_decay")
        check_fields(self, decays, "in (0, 1)", lambda x: 0 < x < 1)
        check_fields(self, ("orthogonality_weight",), "at least 0", lambda x: x >= 0)
        # The last choice counts no gradient of its own step.
        if max(self.initial_steps, 1) >= self.last_choice:
            raise field_error(
                self,
                "total_steps",
                f"over the sum of initial_steps ({self.initial_steps}), at least 1, and "
                f"final_steps ({self.final_steps})",
                "lower these",
            )

    @property
    def last_choice(self) -> int:
        """The step after which the choice is final."""
        return self.total_steps - self.final_steps

    def check(self, ranks: Collection[int], total_steps: int) -> None:
        """Checks the budget against a run.

        Args:
            ranks: `AdaLoRA.rank` of each adapter.
            total_steps: of the run.

        Raises:
            UserError: if no singular value would be removed, or too few.
        """
        if any(self.target_rank >= rank for rank in ranks):
            raise field_error(self, "target_rank", f"under AdaLoRA.rank ({min(ranks)})")
        if self.last_choice > total_steps:
            raise field_error(
                self,
                "total_steps",
                f"at most train.total_steps ({total_steps}) plus final_steps ({self.final_steps})",
                "ranks would stay above the target",
            )

    def removed(self, step: int, triplets: int, kept: int) -> int:
        """Returns how many of the singular values are removed after a step, counted from 1.

        Args:
            triplets: number of all of them.
            kept: number of those that are left at the end.

        >>> budget = RankBudget(total_steps=10, initial_steps=2)
        >>> [budget.removed(step, 24, 16) for step in (2, 3, 4, 6, 10)]
        [0, 3, 5, 7, 8]
        """
        if step <= self.initial_steps:
            return 0
        # In the order of operations of peft: rounding decides between two budgets.
        left = 1 - (step - self.initial_steps) / (self.last_choice - self.initial_steps)
        return triplets - int((triplets - kept) * left**3 + kept)

    def penalty(self, params: Any) -> Float[Array, ""]:
        """Returns what training adds to the loss per token."""
        norms = jnp.zeros([])
        count = 0
        for parts in _adapted(by_name(params)).values():
            for part in (ADALORA_DOWN, ADALORA_UP):
                matrices = _as_matrices(parts, part)
                product = jnp.einsum("nir,nis->nrs", matrices, matrices)
                squares = jnp.sum(jnp.square(product - jnp.eye(product.shape[-1])[None]), (1, 2))
                # The root has no gradient at 0.
                safe = jnp.where(squares > 0, squares, 1.0)
                norms = norms + jnp.sum(jnp.where(squares > 0, jnp.sqrt(safe), 0.0))
                count += len(matrices)
        return self.orthogonality_weight * norms / count

    def allocated(
        self, scores: RankScores, params: Any, grads: Any, step: Array
    ) -> tuple[RankScores, Any]:
        """Returns the scores after a step, and the parameters without values beyond the budget.

        Args:
            params: after the step, those that train.
            grads: of the step.
            step: number of steps, this one included.
        """
        scores = self._scored(scores, params, grads, step)
        maps = _adapted(by_name(params))
        importance = _importance(scores)
        every = jnp.concatenate([x.ravel() for x in importance.values()])
        triplets = len(every)
        kept = self.target_rank * sum(
            math.prod(p[ADALORA_VALUES].shape[:-1]) for p in maps.values()
        )
        removed = jnp.sum(step >= jnp.asarray(self._steps_of_removals(triplets, kept)))
        threshold = jnp.sort(every)[jnp.maximum(removed - 1, 0)]
        chosen = (step % self.every_steps == 0) | (step >= self.last_choice)
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        for name, score in importance.items():
            values = flat[f"{name}/{ADALORA_VALUES}"]
            is_removed = chosen & (removed > 0) & (score <= threshold)
            flat[f"{name}/{ADALORA_VALUES}"] = jnp.where(is_removed, 0, values)
        return scores, flax.traverse_util.unflatten_dict(flat, sep="/")

    def _scored(self, scores: RankScores, params: Any, grads: Any, step: Array) -> RankScores:
        """Returns the scores after a step; from the final choice on they stay."""
        params, grads = (_of_adapters(tree) for tree in (params, grads))
        now = jax.tree.map(lambda p, g: jnp.abs(p.astype(jnp.float32) * g), params, grads)
        rate = self.sensitivity_decay
        sensitivity = jax.tree.map(lambda a, x: rate * a + (1 - rate) * x, scores.sensitivity, now)
        other = self.uncertainty_decay
        uncertainty = jax.tree.map(
            lambda u, x, a: other * u + (1 - other) * jnp.abs(x - a),
            scores.uncertainty,
            now,
            sensitivity,
        )
        new = RankScores(sensitivity=sensitivity, uncertainty=uncertainty)
        is_open = step < self.last_choice
        return jax.tree.map(lambda a, b: jnp.where(is_open, a, b), new, scores)

    def _steps_of_removals(self, triplets: int, kept: int) -> np.ndarray:
        """Returns the first step after which at least n values are removed, for all n from 1."""
        steps = range(self.initial_steps + 1, self.last_choice + 1)
        found = [
            steps[bisect.bisect_left(steps, n, key=lambda s: self.removed(s, triplets, kept))]
            for n in range(1, triplets - kept + 1)
        ]
        return np.array(found, np.int32)


def no_scores(params: Any) -> RankScores:
    """Returns the scores before the first step, for the parameters that train."""
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape), _of_adapters(params))
    return RankScores(sensitivity=zeros, uncertainty=jax.tree.map(jnp.copy, zeros))


def check_budget(budget: RankBudget | None, trained: Collection[str]) -> None:
    """Checks that parameters of AdaLoRA train with a budget, and all of a map together.

    Args:
        trained: the names of the parameters that train.

    Raises:
        UserError: if a budget or a parameter is missing.
    """
    maps = {name.rpartition("/")[0] for name in trained if name.endswith(f"/{ADALORA_VALUES}")}
    if bool(maps) != (budget is not None):
        got, remedy = (
            ("none", "bind train.rank_budget = @RankBudget()")
            if maps
            else ("one", "bind T5Config.adapters = (@AdaLoRA(),), or no budget")
        )
        rule = "is for parameters of AdaLoRA that train" if budget else "is needed by AdaLoRA"
        raise UserError(f"train.rank_budget {rule}, got {got}; {remedy}")
    for name in sorted(maps):
        missing = [part for part in _PARTS if f"{name}/{part}" not in trained]
        if missing:
            raise UserError(
                f"train.trainable must select all parameters of AdaLoRA of {name}, got none for "
                f"{missing[0]}; add '.*/lora_(down|values|up)'"
            )


def mean_rank(params: Any) -> Float[Array, ""]:
    """Returns the mean number of singular values other than 0 per map with AdaLoRA."""
    values = [parts[ADALORA_VALUES] for parts in _adapted(by_name(params)).values()]
    count = sum(math.prod(each.shape[:-1]) for each in values)
    return sum((jnp.sum(each != 0) for each in values), jnp.zeros([])) / count


def _adapted(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the parameters of AdaLoRA of each of its maps, in order."""
    names = sorted(n.rpartition("/")[0] for n in params if n.endswith(f"/{ADALORA_VALUES}"))
    return {name: {part: params[f"{name}/{part}"] for part in _PARTS} for name in names}


def _of_adapters(params: Any) -> Any:
    """Returns the part of a parameter tree that belongs to AdaLoRA."""
    flat = {
        f"{name}/{part}": value
        for name, parts in _adapted(by_name(params)).items()
        for part, value in parts.items()
    }
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _as_matrices(parts: Mapping[str, Any], part: str) -> Float[Array, "n i r"]:
    """Returns a factor of all layers and experts of a map, with the rank as the last axis."""
    values = parts[ADALORA_VALUES].shape
    stacked = len(values) - 1
    factor = parts[part]
    if part == ADALORA_UP:
        factor = jnp.moveaxis(factor, stacked, -1)
    return factor.reshape(math.prod(values[:-1]), -1, values[-1])


def _importance(scores: RankScores) -> dict[str, Float[Array, "..."]]:
    """Returns the score of each singular value with its vectors, in the shape of the values."""
    both = [by_name(tree) for tree in (scores.sensitivity, scores.uncertainty)]
    elements = {name: both[0][name] * both[1][name] for name in both[0]}
    total = {}
    for name, parts in _adapted(elements).items():
        values = parts[ADALORA_VALUES]
        means = sum(
            jnp.mean(_as_matrices(parts, part), axis=1) for part in (ADALORA_DOWN, ADALORA_UP)
        )
        total[name] = values + jnp.reshape(means, values.shape)
    return total
