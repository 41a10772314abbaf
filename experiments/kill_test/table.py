"""Prints the results as Markdown.

python -m experiments.kill_test.table
"""

import collections
import statistics

from absl import app

from experiments.kill_test.runs import lines_of


def print_moments(lines):
    """Prints kills and failures by setting, and by moment."""
    print("| setting | runs | kills | failures | seconds lost per kill, median and largest |")
    print("|---|---|---|---|---|")
    by_setting = collections.defaultdict(list)
    for line in lines:
        by_setting[line["setting"]].append(line)
    for name, runs in by_setting.items():
        lost = [run["seconds_lost_per_kill"] for run in runs]
        print(
            f"| {name} | {len(runs)} | {sum(run['killed'] for run in runs)} | "
            f"{sum(bool(run['differing']) for run in runs)} | {statistics.median(lost):.1f}, "
            f"{max(lost):.1f} |"
        )
    kills = [kill for line in lines for kill in line["kills"] if kill["killed"]]
    moments = collections.Counter(kill["moment"] for kill in kills)
    print(f"\nKills: {len(kills)}: {dict(moments)}")
    # Earlier lines do not have it.
    repeated = collections.Counter(k["repeated_steps"] for k in kills if "repeated_steps" in k)
    print(f"Repeated steps of a kill: how many kills: {dict(sorted(repeated.items()))}\n")


def print_calls(lines):
    """Prints outcomes by fault."""
    print("| fault | tried | ended by it | finished without the file | wrong end | not equal |")
    print("|---|---|---|---|---|---|")
    by_fault = collections.defaultdict(list)
    for line in lines:
        by_fault[line["fault"]].append(line)
    for name, runs in by_fault.items():
        status = [run.get("status", -9 if run.get("killed") else 0) for run in runs]
        print(
            f"| {name} | {len(runs)} | {sum(s != 0 for s in status)} | {status.count(0)} | "
            f"{sum(bool(run.get('complaints')) for run in runs)} | "
            f"{sum(bool(run['differing']) for run in runs)} |"
        )


def main(_):
    print_moments(lines_of("moments"))
    print_calls(lines_of("calls"))


if __name__ == "__main__":
    app.run(main)
