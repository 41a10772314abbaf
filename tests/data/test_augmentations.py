"""Augmentations: what they change, and that training alone reads it, the same in any process."""

import collections
import dataclasses
import re

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.batching.stream import eval_examples
from t5lite.data.mixture import Mixture
from t5lite.data.text.augmentations import DropWords, SpanNoise, SwapWords
from t5lite.data.text.fields import JsonText
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.classes import Tagging
from t5lite.objectives.span_corruption import SpanCorruption
from tests.data import lists, streams
from tests.data.lists import LAYOUT, VOCABULARY, ListSource

TEXT = "  one two\tthree <extra_id_7>glued four\n five <sep> six seven "
SPECIAL = SpecialTokens(added_tokens={"<sep>": 400})
KINDS = (DropWords, SwapWords, SpanNoise)


def augment(augmentation, text, rng, vocabulary=VOCABULARY):
    return augmentation.augment({"text": text, "other": text}, rng, vocabulary)["text"]


@dataclasses.dataclass(frozen=True)
class Shout:
    """A user's own augmentation, at random."""

    def augment(self, record, rng, vocabulary):
        return {**record, "q": record["q"].upper() if rng.random() < 0.5 else record["q"]}


@dataclasses.dataclass(frozen=True)
class Broken:
    def augment(self, record, rng, vocabulary):
        raise ValueError("not today")


def test_dropping_keeps_order_special_words_and_the_mean_number_of_words(seed):
    rng = np.random.default_rng(seed)
    words = [f"w{n}" for n in range(40)]
    text = " ".join([*words[:20], "<extra_id_3>", *words[20:]])
    drop = DropWords(fields=["text"], fraction=0.25)
    counts = []
    for _ in range(100):
        left = augment(drop, text, rng).split(" ")
        assert "<extra_id_3>" in left
        left.remove("<extra_id_3>")
        assert left == [word for word in words if word in left]
        counts.append(len(left))
    # The mean of 100 binomials of mean 30 and standard deviation 2.74: six standard errors.
    assert np.mean(counts) == pytest.approx(30, abs=6 * 2.74 / np.sqrt(100)), seed


def test_one_word_always_stays(seed):
    rng = np.random.default_rng(seed)
    drop = DropWords(fields=["text"], fraction=0.99)
    assert {augment(drop, "a b", rng) for _ in range(50)} == {"a", "b"}
    assert augment(drop, "", rng) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_white_space_other_fields_and_special_pieces_stay(kind, seed):
    rng = np.random.default_rng(seed)
    vocabulary = ByteVocabulary(special=SPECIAL)
    for _ in range(20):
        change = kind(fields=["text"], fraction=0.6)
        record = change.augment({"text": TEXT, "other": TEXT}, rng, vocabulary)
        assert record["other"] == TEXT
        assert " <extra_id_7>glued" in record["text"]
        assert " <sep>" in record["text"]
        assert record["text"].startswith("  ")
        assert record["text"].endswith(" ")


def test_swapping_permutes_words_at_the_positions_of_words(seed):
    rng = np.random.default_rng(seed)
    swap = SwapWords(fields=["text"], fraction=0.3)
    for _ in range(20):
        text = augment(swap, TEXT, rng)
        assert sorted(text.split()) == sorted(TEXT.split())
        assert re.findall(r"\s+", text) == re.findall(r"\s+", TEXT)
        moved = [a != b for a, b in zip(text.split(), TEXT.split(), strict=True)]
        # Two exchanges of two words each, which may undo one another.
        assert sum(moved) in (0, 3, 4)


def test_spans_have_the_fraction_and_mean_length_and_numbered_masks(seed):
    rng = np.random.default_rng(seed)
    words = [f"w{n}" for n in range(40)]
    noise = SpanNoise(fields=["text"], fraction=0.3, mean_words=3.0)
    starts = collections.Counter()
    for _ in range(40):
        left = augment(noise, " ".join(words), rng).split(" ")
        masks = [word for word in left if word.startswith("<")]
        # 12 words in 4 spans.
        assert masks == [f"<extra_id_{n}>" for n in range(4)]
        assert len(left) == 40 - 12 + 4
        starts[left[0][0]] += 1
    assert set(starts) == {"<", "w"}


def test_masks_are_those_that_the_text_does_not_have_and_the_vocabulary_has(rng):
    noise = SpanNoise(fields=["text"], fraction=0.5, mean_words=1.0)
    text = augment(noise, "a b <extra_id_0> c d", rng)
    assert re.findall("<.*?>", text.replace("<extra_id_0>", "")) == ["<extra_id_1>", "<extra_id_2>"]
    few = ByteVocabulary(num_sentinels=2)
    text = augment(noise, "a b c d e f g h", rng, few)
    assert re.findall("<.*?>", text) == ["<extra_id_0>", "<extra_id_1>"]
    assert len(text.split()) == 8


def test_one_mask_or_none(rng):
    kept = ByteVocabulary(special=SPECIAL)
    noise = SpanNoise(fields=["text"], fraction=0.4, mean_words=1.0, mask="<sep>")
    assert augment(noise, "a b c d e", rng, kept).split().count("<sep>") == 2
    noise = dataclasses.replace(noise, mask="")
    assert len(augment(noise, "a b c d e", rng).split()) == 3


def test_texts_of_a_list_are_changed_one_by_one(rng):
    field = JsonText('["a b c d e f g h", 3, "one"]')
    changed = DropWords(fields=["x"], fraction=0.9).augment({"x": field}, rng, VOCABULARY)["x"]
    text, number, one = changed.value
    assert (number, one) == (3, "one")
    assert 1 <= len(text.split()) < 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DropWords(fields=[]), "DropWords.fields must be names of fields"),
        (lambda: SwapWords(fields=["q"], fraction=1.0), r"SwapWords.fraction must be in \(0, 1\)"),
        (
            lambda: SpanNoise(fields=["q"], mean_words=0.5),
            "SpanNoise.mean_words must be at least 1",
        ),
        (lambda: SpanNoise(fields=["q"], mask="a b"), "SpanNoise.mask must be without spaces"),
    ],
    ids=range(4),
)
def test_wrong_numbers_are_rejected(make, message):
    with pytest.raises(UserError, match=message):
        make()


def rows(count):
    return [{"q": f"q{n} one two three four five", "a": f"a{n}"} for n in range(count)]


def read(task, count, **choices):
    batches = streams.take(task, count, layout=LAYOUT, **choices)
    return [
        example
        for features, _ in batches
        for row in range(len(features["decoder_segment_ids"]))
        for example in lists.examples(features, row)
    ]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"augmentations": [DropWords(fields=["que"])]}, "DropWords.fields names the field 'que'"),
        ({"augmentations": [SpanNoise(fields=["q"], mask="_")]}, "must be a special piece"),
        ({"augmentations": [Broken()]}, "Broken failed on record 0: ValueError: not today"),
        ({"augmentations": [DropWords]}, "objects with a method augment, such as @DropWords"),
        (
            {"augmentations": [Shout()], "token_cache": "x"},
            "Task.token_cache must be None with Task.augmentations",
        ),
        (
            {"augmentations": [Shout()], "objective": Tagging(inputs_length=9, classes=["O", "B"])},
            "Task.augmentations must be empty for an objective with a class for each word",
        ),
    ],
    ids=range(6),
)
def test_what_does_not_fit_is_rejected_before_training(choices, message):
    with pytest.raises(UserError, match=message):
        streams.take(lists.task(rows(4), **choices), 0, layout=LAYOUT)


def test_training_reads_each_record_anew_and_evaluation_never(seed):
    count = 16
    task = lists.task(rows(count), augmentations=[DropWords(fields=["q"], fraction=0.4)])
    found = collections.defaultdict(list)
    for inputs, targets, _ in read(task, 2 * 5, packed=False, seed=seed):
        found[targets].append(inputs)
    assert sorted(found) == sorted(f"a{n}|" for n in range(count))
    for targets, texts in found.items():
        number = targets[1:-1]
        # Five epochs: the same text in all has a probability under 1e-5.
        assert len(texts) == 5
        assert len(set(texts)) > 1, seed
        words = f"q{number} one two three four five".split()
        for left in (text.removesuffix("|").split() for text in texts):
            assert left == [word for word in words if word in left]
    plain = [VOCABULARY.decode(e["inputs"]) for e in eval_examples(task, "train")]
    assert plain == [row["q"] for row in rows(count)]


def test_targets_stay_with_their_inputs_and_another_seed_differs(seed):
    task = lists.task(rows(8), augmentations=[Shout(), SwapWords(fields=["q"])])
    some = read(task, 2, packed=False, seed=seed)
    assert all(f"q{t[1:-1]}" in i.lower() for i, t, _ in some)
    assert {i.isupper() for i, _, _ in some} == {True, False}
    assert some != read(task, 2, packed=False, seed=seed + 1)


def mixture():
    """Augmented pairs, and augmented running text that is joined across records."""
    noise = [SpanNoise(fields=["q"], fraction=0.3, mean_words=1.0)]
    pairs = lists.task(rows(40), name="pairs", augmentations=noise)
    spans = lists.task(
        rows(40),
        name="spans",
        objective=SpanCorruption(inputs_length=40),
        inputs=None,
        targets="{q}",
        augmentations=[DropWords(fields=["q"], fraction=0.5)],
    )
    return Mixture(components=[pairs, spans], shares=[1.0, 1.0])


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
def test_restarts_do_not_change_augmented_batches(packed, rng):
    task = mixture()
    count = 6
    rows_of = [3] if packed else range(8)
    whole = streams.take(task, count, layout=LAYOUT, packed=packed, rows=rows_of)
    step = int(rng.integers(1, count))
    again = streams.take(
        *(task, count - step),
        layout=LAYOUT,
        packed=packed,
        rows=rows_of,
        cursors=whole[step - 1][1],
    )
    assert streams.digest([f for f, _ in again]) == streams.digest([f for f, _ in whole[step:]])


def test_rows_of_a_process_do_not_change_augmented_batches():
    whole = streams.take(mixture(), 6, layout=LAYOUT, packed=False)
    some = streams.take(mixture(), 6, layout=LAYOUT, packed=False, rows=[1, 4, 6])
    for (features, _), (full, _) in zip(some, whole, strict=True):
        for name, values in features.items():
            np.testing.assert_array_equal(values, full[name][[1, 4, 6]])


@pytest.mark.proof
def test_workers_do_not_change_augmented_batches():
    whole = streams.take(mixture(), 12, layout=LAYOUT)
    several = streams.take(mixture(), 12, layout=LAYOUT, workers=2)
    assert streams.digest([f for f, _ in several]) == streams.digest([f for f, _ in whole])


def test_the_identity_changes_with_augmentations_alone():
    plain = lists.task(rows(4))
    one = lists.task(rows(4), augmentations=[DropWords(fields=["q"])])
    other = lists.task(rows(4), augmentations=[DropWords(fields=["q"], fraction=0.2)])
    own = lists.task(rows(4), augmentations=[Shout()])
    found = [task.identity("train")["task.data"] for task in (plain, one, other, own)]
    assert len(set(found)) == 4
    assert found[0] == f"{ListSource(rows(4)).records('train').fingerprint}, '{{q}}', '{{a}}' []"
