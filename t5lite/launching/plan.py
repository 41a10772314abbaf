"""The number of trials and settings of a sweep, printed before it starts."""

from t5lite.core.counts import counted
from t5lite.launching.launch import Launch
from t5lite.launching.sweeps.settings import (
    count_distinct,
    is_seed,
    num_settings,
    without_seeds,
)
from t5lite.launching.sweeps.space import parse_space


def plan_lines(launch: Launch) -> list[str]:
    """Returns lines on what a sweep runs and whether it exhausts its space; [] without a sweep."""
    if not launch.is_sweep:
        return []
    count = launch.num_trials
    planned = launch.planned
    if planned:
        distinct = counted(count_distinct(planned), "distinct setting")
        line = f"{launch.name}: {counted(count, 'trial')}, {distinct}"
        if any(map(is_seed, planned[0])):
            settings = count_distinct(map(without_seeds, planned))
            line += f" ({settings} apart from their seeds)"
    else:
        line = f"{launch.name}: {counted(count, 'trial')}, whose settings {launch.method} chooses"
    lines = [line]
    size = num_settings(parse_space(launch.space_or_listed))
    if launch.trials is not None and count < launch.trials:
        all_settings = counted(size or 0, "setting")
        lines.append(
            f"{launch.name}: the search space is exhausted by its {all_settings}, so --trials is "
            f"{count} instead of {launch.trials}; sweep train.seed to repeat settings with other "
            "seeds, or use --allow_repeats"
        )
    return lines
