"""Feeds a parser of outside bytes thousands of damaged inputs, in this process.

A parser may return a value or raise a UserError on one line. Any other exception, more than
`MAX_BYTES` of further memory or `MAX_SECONDS` for one input is a fault. The seed is printed, and a
fault names the input.

    def test_reading_notes_raises_only_documented_errors(seed, tmp_path):
        attack("shard notes", read, mutations([NOTE], seed), seed)
        attack_from("shard notes", read, st.binary(), seed)
"""

import collections
import contextlib
import itertools
import pathlib
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import hypothesis
from hypothesis import strategies

from t5lite.core.errors import UserError

# Inputs for each parser: most are mutations, which are cheap, the others come from Hypothesis.
MUTATED_CASES = 9_500
GENERATED_CASES = 500
MAX_BYTES = 1 << 30
# Of processor time: other processes may keep this one waiting.
MAX_SECONDS = 5.0
SHOWN_BYTES = 300


class OutOfTime(BaseException):
    """The time for one input is over. No parser catches it."""


def attack(
    name: str,
    read: Callable[[Any], Any],
    inputs: Iterable[Any],
    seed: int,
    *,
    count: int = MUTATED_CASES,
) -> None:
    """Calls `read` with the first `count` inputs, and fails if any of them shows a fault.

    All inputs are tried: a failure lists one input for each kind of fault, and how many there are.

    Args:
        name: of the parser.
        read: takes one input.
        seed: of the inputs, to be printed.
    """
    faults: dict[str, list[str]] = collections.defaultdict(list)
    counts = collections.Counter({"read": 0, "rejected": 0})
    began = time.perf_counter()
    with limited_memory():
        for number, case in enumerate(itertools.islice(inputs, count)):
            outcome, fault = try_case(read, case)
            counts[outcome] += 1
            if fault:
                faults[fault].append(f"case {number}: {shown(case)}")
    seconds = time.perf_counter() - began
    total = sum(counts.values())
    print(
        f"{name}: {total:,} cases with seed {seed} in {seconds:.1f} s ({total / seconds:,.0f}/s): "
        + ", ".join(f"{n:,} {outcome}" for outcome, n in counts.items())
    )
    report = [f"{len(cases):,} times {fault}\n  {cases[0]}" for fault, cases in faults.items()]
    assert not report, f"{name}, seed {seed}:\n" + "\n".join(report)
    assert total == count, f"{name}: only {total:,} inputs"


def attack_from(
    name: str,
    read: Callable[[Any], Any],
    strategy: strategies.SearchStrategy[Any],
    seed: int,
    *,
    count: int = GENERATED_CASES,
) -> None:
    """Calls `read` with `count` inputs that Hypothesis generates; a failure is shrunk."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(case: Any) -> None:
        tried[0] += 1
        _, fault = try_case(read, case)
        assert not fault, f"{name}, seed {seed}: {fault}\n  {shown(case)}"

    tried = [0]
    began = time.perf_counter()
    with limited_memory():
        run()
    seconds = time.perf_counter() - began
    print(
        f"{name}: {tried[0]:,} cases of Hypothesis with seed {seed} in {seconds:.1f} s "
        f"({tried[0] / seconds:,.0f}/s)"
    )


def try_case(read: Callable[[Any], Any], case: Any) -> tuple[str, str]:
    """Returns "read", "rejected" or "fault", and the fault or ""."""
    began = time.process_time()
    outcome = "read"
    fault = ""
    try:
        with _time_limit():
            read(case)
    except UserError as error:
        outcome = "rejected"
        if len(str(error).splitlines()) != 1:
            fault = f"an error that is not one line: {str(error)[:SHOWN_BYTES]!r}"
    # What is not documented is a fault.
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__} at {frame.filename}:{frame.lineno}: {str(error)[:200]}"
    except OutOfTime:
        fault = f"over {MAX_SECONDS:g} s"
    # Code that no signal interrupts, or that caught the exception.
    if not fault and time.process_time() - began > MAX_SECONDS:
        fault = f"over {MAX_SECONDS:g} s in the end"
    return "fault" if fault else outcome, fault


def shown(case: Any) -> str:
    """Returns an input as text, without the middle of a long one."""
    text = repr(case)
    if len(text) <= SHOWN_BYTES:
        return text
    return f"{text[: SHOWN_BYTES // 2]} ... {text[-SHOWN_BYTES // 2 :]} ({len(text):,} characters)"


@contextlib.contextmanager
def limited_memory(size: int = MAX_BYTES) -> Iterator[None]:
    """Makes allocations of more than `size` further bytes fail while the context is open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Raises an OutOfTime in the main thread after `MAX_SECONDS`."""
    before = signal.signal(signal.SIGPROF, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _out_of_time(signum: int, frame: Any) -> None:
    raise OutOfTime
