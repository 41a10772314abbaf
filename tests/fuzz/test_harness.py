"""The harness finds what it is for: undocumented errors, long messages, memory and time."""

import itertools
import json

import pytest
from hypothesis import strategies

from t5lite.core.errors import UserError
from tests.fuzz import harness
from tests.fuzz.harness import attack, attack_from, try_case
from tests.fuzz.mutation import mutations

SAMPLE = b'{"step": 1, "split": "train", "loss": 0.5}\n'


def read(text: bytes) -> None:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError("not JSON") from error


def test_a_parser_of_documented_errors_passes(seed, capsys):
    attack("JSON", read, mutations([SAMPLE], seed), seed, count=500)
    attack_from("JSON", read, strategies.binary(), seed, count=50)
    printed = capsys.readouterr().out
    assert f"JSON: 500 cases with seed {seed}" in printed
    assert "50 cases of Hypothesis" in printed


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (lambda case: json.loads(case), "JSONDecodeError at "),
        (lambda case: bytearray(2 * harness.MAX_BYTES), "MemoryError at "),
        (lambda case: [None for _ in itertools.count()], "over 0.1 s"),
    ],
)
def test_a_fault_is_reported_with_its_input_and_seed(broken, fault, seed, monkeypatch):
    monkeypatch.setattr(harness, "MAX_SECONDS", 0.1)
    with pytest.raises(AssertionError, match=f"JSON, seed {seed}:\n1 times {fault}") as caught:
        attack("JSON", broken, [b"{bad"], seed, count=1)
    assert "case 0: b'{bad'" in str(caught.value)


def test_an_error_must_have_a_message():
    def fail(case):
        raise UserError("")

    assert try_case(fail, b"")[0] == "fault"


def test_too_few_inputs_are_an_error(seed):
    with pytest.raises(AssertionError, match="only 1 inputs"):
        attack("JSON", read, [b"{}"], seed, count=2)


def test_mutations_repeat_with_their_seed_and_reach_every_byte():
    first, again = (list(itertools.islice(mutations([SAMPLE], 1), 2000)) for _ in range(2))
    assert first == again
    assert first != list(itertools.islice(mutations([SAMPLE], 2), 2000))
    same_length = [case for case in first if len(case) == len(SAMPLE)]
    changed = {i for case in same_length for i in range(len(SAMPLE)) if case[i] != SAMPLE[i]}
    assert changed == set(range(len(SAMPLE)))
