"""Class-balanced sampling and curricula: what is read when, and that it resumes."""

import collections

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.batching.order import balanced_order
from t5lite.data.batching.stream import eval_examples
from t5lite.data.class_balance import ClassBalance
from t5lite.data.curriculum import LengthCurriculum
from t5lite.data.mixture import Mixture
from t5lite.objectives.causal import Causal
from t5lite.objectives.span_corruption import SpanCorruption
from tests.data import lists, streams
from tests.data.lists import DECODER, LAYOUT
from tests.proofs import proof

ROWS = [{"q": f"q{n}", "a": f"a{n}", "label": "abc"[(n > 4) + (n > 30)]} for n in range(40)]


def drop_c(record):
    """A preprocessor that drops a class."""
    return None if record["label"] == "c" else record


def targets(batches):
    return [
        learned.removesuffix("|")
        for features, _ in batches
        for row in range(len(features["decoder_segment_ids"]))
        for _, _, learned in lists.examples(features, row)
    ]


def test_classes_are_read_in_exact_numbers_and_records_of_a_class_alike(seed):
    labels = [row["label"] for row in ROWS]
    for weights, shares in ((None, (14, 13, 13)), ({"c": 1, "a": 2.0, "b": 5}, (10, 25, 5))):
        order = balanced_order(ClassBalance(field="label", weights=weights), labels, (seed, 0))
        read = [order(position) for position in range(4 * 40)]
        for start in range(0, len(read), 40):
            period = collections.Counter(labels[n] for n in read[start : start + 40])
            assert tuple(period[name] for name in "abc") == shares
        counts = np.array([read.count(n) for n in range(40)])
        for name in "abc":
            of = counts[[label == name for label in labels]]
            assert of.max() - of.min() <= 1, seed
        assert read[:40] != read[40:80]


@pytest.mark.parametrize("packed", [proof(False), True], ids=["unpacked", "packed"])
def test_balanced_batches_resume(packed, rng):
    of = lists.task(ROWS, balance=ClassBalance(field="label"))
    rows = [2] if packed else range(8)
    whole = streams.take(of, 10, layout=LAYOUT, packed=packed, rows=rows)
    if not packed:
        # Two periods of 40 records.
        counts = collections.Counter(ROWS[int(t[1:])]["label"] for t in targets(whole))
        assert counts == {"a": 28, "b": 26, "c": 26}
    step = int(rng.integers(1, 10))
    cursors = whole[step - 1][1]
    again = streams.take(of, 10 - step, layout=LAYOUT, packed=packed, rows=rows, cursors=cursors)
    assert streams.digest([f for f, _ in again]) == streams.digest([f for f, _ in whole[step:]])


def test_rows_of_a_process_do_not_change_balanced_batches():
    of = lists.task(ROWS, balance=ClassBalance(field="label"))
    whole = streams.take(of, 6, layout=LAYOUT, packed=False)
    some = streams.take(of, 6, layout=LAYOUT, packed=False, rows=[2, 5])
    for (features, _), (full, _) in zip(some, whole, strict=True):
        for name, values in features.items():
            np.testing.assert_array_equal(values, full[name][[2, 5]])


@pytest.mark.proof
def test_workers_do_not_change_balanced_batches():
    of = lists.task(ROWS, balance=ClassBalance(field="label"))
    digests = [
        streams.digest(
            [f for f, _ in streams.take(of, 5, layout=LAYOUT, packed=False, workers=workers)]
        )
        for workers in (0, 2)
    ]
    assert digests[0] == digests[1]


def test_evaluation_reads_every_record_once_and_labels_follow_preprocessors():
    step = "tests.data.test_sampling:drop_c"
    of = lists.task(ROWS, balance=ClassBalance(field="label"), preprocessors=[step])
    assert len(list(eval_examples(of, "validation"))) == 31
    batches = streams.take(of, 10, layout=LAYOUT, packed=False)
    counts = collections.Counter(ROWS[int(t[1:])]["label"] for t in targets(batches))
    assert counts == {"a": 40, "b": 40}


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ({"field": "lable"}, "ClassBalance.field names the field 'lable'.*'label'"),
        (
            {"field": "label", "weights": {"a": 1, "b": 1}},
            "must have every class, got none for 'c'",
        ),
        (
            {"field": "label", "weights": {"a": 1, "b": 1, "c": 1, "d": 1}},
            "names the class 'd', which no record has",
        ),
    ],
    ids=range(3),
)
def test_classes_that_do_not_fit_are_rejected_before_training(balance, message):
    of = lists.task(ROWS, balance=ClassBalance(**balance))
    with pytest.raises(UserError, match=message):
        streams.take(of, 0, layout=LAYOUT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassBalance(field="x", weights={"a": 0}), r"weights\['a'\] must be over 0"),
        (lambda: ClassBalance(field="x", weights={"a": "1"}), "must be a number, got '1'"),
        (lambda: ClassBalance(field="x", weights={}), "a weight for each class, or None"),
        (
            lambda: LengthCurriculum(max_lengths=[5, 5], boundaries=[1, 2]),
            "LengthCurriculum.max_lengths must be integers of at least 1, each over the one before",
        ),
        (
            lambda: LengthCurriculum(max_lengths=[5, 6], boundaries=[1]),
            "boundaries must be one for each of the 2 stages of max_lengths",
        ),
    ],
    ids=range(5),
)
def test_wrong_numbers_are_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()


LONG = [{"q": "x" * (n % 30), "a": f"a{n:02d}"} for n in range(60)]
CURRICULUM = LengthCurriculum(max_lengths=[13, 23], boundaries=[4, 9])


def test_stages_read_short_records_then_longer_ones_then_all():
    of = lists.task(LONG, curriculum=CURRICULUM)
    batches = streams.take(of, 24, layout=LAYOUT, packed=False)
    longest = [
        # The features hold two ends of sequence.
        int(
            (f["encoder_segment_ids"] > 0).sum(1).max()
            + (f["decoder_segment_ids"] > 0).sum(1).max()
            - 2
        )
        for f, _ in batches
    ]
    assert max(longest[:4]) <= 13 < max(longest[4:9]) <= 23 < max(longest[9:])
    plain = [len(example["inputs"]) - 1 for example in eval_examples(of, "validation")]
    assert plain == [len(row["q"]) for row in LONG]


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
def test_a_curriculum_resumes_in_every_stage(packed):
    of = lists.task(LONG, curriculum=CURRICULUM)
    rows = [5] if packed else range(8)
    whole = streams.take(of, 12, layout=LAYOUT, packed=packed, rows=rows)
    for step in (3, 4, 9):
        cursors = whole[step - 1][1]
        again = streams.take(
            of, 12 - step, layout=LAYOUT, packed=packed, rows=rows, cursors=cursors
        )
        assert streams.digest([f for f, _ in again]) == streams.digest([f for f, _ in whole[step:]])


def test_a_curriculum_counts_the_steps_of_a_mixture():
    short = lists.task(LONG, name="short", curriculum=CURRICULUM)
    mixed = Mixture(components=[short, lists.task(LONG, name="all")], shares=[1.0, 1.0])
    batches = streams.take(mixed, 6, layout=LAYOUT, packed=False)
    lengths = [(f["encoder_segment_ids"] > 0).sum(1).tolist() for f, _ in batches]
    # Half of the examples are of at most 10 + 3 tokens, against a third of the task without stages.
    early = [length for row in lengths[:4] for length in row]
    assert np.mean([length <= 11 for length in early]) > 0.5
    assert max(early) > 24


def test_documents_that_stay_apart_have_a_curriculum_by_the_length_of_the_record():
    of = lists.task(
        [{"q": "y" * n} for n in (3, 9, 20)],
        objective=Causal(targets_length=8),
        inputs=None,
        targets="{q}",
        join_documents=False,
        curriculum=LengthCurriculum(max_lengths=[9], boundaries=[5]),
    )
    batches = streams.take(of, 20, layout=DECODER, packed=False)
    read = [t for features, _ in batches[:5] for t in targets([(features, [])])]
    # The record of 9 tokens and its end are two examples.
    assert set(read) == {"yyy", "yyyyyyyy", "y"}
    assert "yyyyyyyy" in targets(batches[5:])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"objective": SpanCorruption(inputs_length=24), "inputs": None},
            "Task.join_documents must be False with Task.curriculum",
        ),
        (
            {"curriculum": LengthCurriculum(max_lengths=[2], boundaries=[3])},
            "LengthCurriculum.max_lengths must be at least the 3 tokens of the shortest record of",
        ),
    ],
    ids=range(2),
)
def test_a_curriculum_that_does_not_fit_is_rejected(choices, message):
    with pytest.raises(UserError, match=message):
        streams.take(lists.task(LONG, **{"curriculum": CURRICULUM, **choices}), 1, layout=LAYOUT)


def test_identities_of_earlier_versions_stay():
    plain = lists.task(ROWS).identity("train")
    assert set(plain) == {
        f"task.{n}" for n in ("data", "vocabulary", "objective", "join_documents")
    }
    balanced = lists.task(ROWS, balance=ClassBalance(field="label"), curriculum=CURRICULUM)
    assert set(balanced.identity("train")) == {*plain, "task.balance", "task.curriculum"}
