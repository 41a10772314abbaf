"""Few-shot prompts: whose records they hold, how they are drawn, and that they fit."""

import collections
import re

import pytest

from t5lite.core.errors import UserError
from t5lite.data.batching.stream import eval_examples
from t5lite.data.text.few_shot import FewShot
from t5lite.objectives.causal import Causal
from t5lite.objectives.supervised import Supervised
from tests.data import lists, streams
from tests.data.lists import LAYOUT, VOCABULARY, ListSource

TRAIN = [{"q": f"q{n:02d}", "a": f"a{n:02d}"} for n in range(20)]
VALIDATION = [*TRAIN[:3], {"q": "new", "a": "new"}]
SHOTS = FewShot(template="{q}={a};", count=3)


def task(few_shot=SHOTS, **choices):
    given = {"inputs": "{shots}{q}=", "few_shot": few_shot}
    source = ListSource(TRAIN, VALIDATION)
    return lists.task(TRAIN, **{"source": source, **given, **choices})


def prompts(task, split="validation"):
    return [VOCABULARY.decode(example["inputs"]) for example in eval_examples(task, split)]


@pytest.mark.parametrize("fixed", [False, True], ids=["drawn", "fixed"])
def test_prompts_hold_other_solved_records_of_the_training_split(fixed):
    of = task(FewShot(template="{q}={a};", count=3, fixed=fixed))
    found = prompts(of)
    assert found == prompts(of)
    for prompt, row in zip(found, VALIDATION, strict=True):
        *shots, own = prompt.split(";")
        assert own == f"{row['q']}="
        assert len(set(shots)) == 3
        assert {f"{r['q']}={r['a']}" for r in TRAIN if r["q"] != row["q"]} >= set(shots)
    shots = {prompt.rpartition(";")[0] for prompt in prompts(of, "train")}
    # Of fixed ones, those that are the record itself have another in their position.
    assert len(shots) == (4 if fixed else 20)


def test_shots_depend_on_their_seed_and_are_uniform():
    counts = collections.Counter(
        shot
        for seed in range(8)
        for prompt in prompts(task(FewShot(template="{q}={a};", count=3, seed=seed)), "train")
        for shot in re.findall(r"q(\d\d)=a", prompt)
    )
    # 480 draws of 20 records: means of 24, standard deviation 4.8.
    assert set(counts) == {f"{n:02d}" for n in range(20)}
    assert all(4 < count < 48 for count in counts.values())


def test_training_draws_anew_in_each_epoch_the_same_in_every_row_and_restart(seed, rng):
    of = task()
    whole = streams.take(of, 6, layout=LAYOUT, packed=False, seed=seed)
    found = collections.defaultdict(set)
    for features, _ in whole:
        for row in range(streams.BATCH_SIZE):
            ((inputs, targets, _),) = lists.examples(features, row)
            *shots, own = inputs.removesuffix("|").split(";")
            number = targets[1:-1]
            assert own == f"q{number}="
            assert f"q{number}=a{number}" not in shots
            found[number].add(tuple(shots))
    # At least two epochs.
    assert all(len(shots) >= 2 for shots in found.values()), seed
    step = int(rng.integers(1, 6))
    cursors = whole[step - 1][1]
    again = streams.take(of, 6 - step, layout=LAYOUT, packed=False, seed=seed, cursors=cursors)
    assert streams.digest([f for f, _ in again]) == streams.digest([f for f, _ in whole[step:]])


@pytest.mark.parametrize("length", [29, 28, 5])
def test_the_first_shots_are_left_out_where_inputs_are_too_long(length):
    # Three shots of 8 tokens, a question of 4, and an end of sequence.
    objective = Supervised(inputs_length=length, targets_length=9)
    full = prompts(task(), "train")
    for prompt, long in zip(prompts(task(objective=objective), "train"), full, strict=True):
        assert long.endswith(prompt)
        assert len(prompt) == 4 + 8 * ((length - 5) // 8)


def test_equal_records_are_no_shots():
    rows = [{"q": "same", "a": "x"}] * 5 + [{"q": "other", "a": "y"}]
    of = task(FewShot(template="{q}={a};", count=1), source=ListSource(rows))
    assert set(prompts(of, "train")[:5]) == {"other=y;same="}
    few = FewShot(template="{q}={a};", count=2)
    with pytest.raises(UserError, match="record 0: FewShot.count must be at most the 1 other rec"):
        prompts(task(few, source=ListSource(rows)), "train")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"inputs": "{q}"}, "Task.inputs must be a template with {shots} for Task.few_shot"),
        ({"token_cache": "x"}, "Task.token_cache must be None with Task.few_shot"),
        (
            {"objective": Causal(targets_length=9), "inputs": None},
            "Task.few_shot must be None for running text",
        ),
    ],
    ids=range(3),
)
def test_a_task_that_does_not_fit_is_rejected(choices, message):
    with pytest.raises(UserError, match=message):
        task(**choices)


def test_fields_are_checked_before_training():
    with pytest.raises(UserError, match="FewShot.template '{b}' names the field 'b'"):
        task(FewShot(template="{b}")).tokens("train")
    source = ListSource([{"q": "1", "a": "2", "shots": "3"}])
    with pytest.raises(UserError, match="makes the field 'shots', which the records have too"):
        task(source=source).tokens("train")


def test_the_identity_changes_with_the_shots():
    found = [
        task(few).identity("train")["task.data"]
        for few in (SHOTS, FewShot(template="{q}={a};", count=3, seed=1))
    ]
    assert found[0] != found[1]
