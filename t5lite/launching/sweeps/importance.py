"""How much each binding of a sweep matters for its objective."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from t5lite.launching.sweeps.settings import Setting, setting_key, without_seeds

# PED-ANOVA compares the better half of the settings with all of them. Optuna's default, the best
# tenth, would be a single one of ten settings.
TARGET_QUANTILE = 0.5
MIN_SETTINGS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """The share of each binding, in all 1, or the reason why there is none.

    Args:
        shares: by gin name; empty if `reason` is given.
        reason: why importance cannot be estimated; "" if it can.
    """

    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reason: str = ""


def importance_of(values: Sequence[tuple[Setting, float]], *, maximize: bool) -> Importance:
    """Estimates how much each binding matters for the better half of the settings (PED-ANOVA).

    Seeds are noise, not parameters: the values of trials that differ only in them are averaged.

    Args:
        values: setting and final value of each complete trial.
        maximize: whether a higher value is better.

    Source:
        Watanabe et al. 2023, PED-ANOVA, arXiv:2304.10255, as implemented by Optuna.
    """
    groups: dict[Any, list[float]] = {}
    settings: dict[Any, dict[str, Any]] = {}
    for setting, value in values:
        own = without_seeds(setting)
        key = setting_key(own)
        settings[key] = own
        groups.setdefault(key, []).append(value)
    names = sorted({name for own in settings.values() for name in own})
    names = [n for n in names if len({repr(own.get(n)) for own in settings.values()}) > 1]
    means = {key: statistics.fmean(group) for key, group in groups.items()}
    if not names:
        return Importance(reason="nothing but seeds differs between the complete trials")
    if len(means) < MIN_SETTINGS:
        return Importance(
            reason=f"too few settings: importance needs {MIN_SETTINGS} complete settings besides "
            f"their seeds, got {len(means)}"
        )
    if len(set(means.values())) < 2:
        return Importance(reason="all settings have the same value")
    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    distributions = {
        name: _observed_distribution([own[name] for own in settings.values()]) for name in names
    }
    for key, own in settings.items():
        params = {name: own[name] for name in names}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=means[key])
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return Importance(shares={name: float(share) for name, share in found.items()})


def _observed_distribution(values: Sequence[Any]) -> optuna.distributions.BaseDistribution:
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low = min(values)
        high = max(values)
        # Ratios count where values differ by more than a factor of ten.
        log = low > 0 and high / low > 10
        return optuna.distributions.FloatDistribution(float(low), float(high), log=log)
    return optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
