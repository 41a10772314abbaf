"""Dialogues: which turns are read and which are learned, for every kind of objective."""

import re

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.batching.features import batch_of
from t5lite.data.batching.stream import eval_examples
from t5lite.data.questions import questions
from t5lite.data.statistics import task_statistics, unigram_entropy
from t5lite.data.text.dialogue import Dialogue, encoded_turns
from t5lite.data.text.fields import JsonText, as_field
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.objectives.causal import Causal
from t5lite.objectives.prefix_lm import PrefixLM
from t5lite.objectives.span_corruption import SpanCorruption
from t5lite.objectives.supervised import Supervised
from tests.data import lists, streams
from tests.data.lists import DECODER, LAYOUT, VOCABULARY

SHORT = Dialogue(learn=["bot"], template="{role}:{text}.")
TURNS = [("user", "hi"), ("bot", "yo"), ("user", "ok"), ("bot", "bye")]


def record(turns):
    return {"turns": [{"role": role, "text": text} for role, text in turns]}


def task(rows, objective, dialogue=SHORT, **choices):
    given = {"join_documents": False, "inputs": None, "targets": "{text}", "dialogue": dialogue}
    return lists.task(rows, objective=objective, **{**given, **choices})


def made(task, layout):
    """The (inputs, targets, learned targets) of each example of an evaluation."""
    return [
        each
        for example in eval_examples(task, "validation")
        for each in lists.examples(batch_of(layout, [[example]]), 0)
    ]


def test_causal_reads_the_dialogue_and_learns_the_turns_of_the_roles():
    found = made(task([record(TURNS)], Causal(targets_length=64)), DECODER)
    assert found == [("", "user:hi.bot:yo.user:ok.bot:bye.|", "yo.bye.|")]


def test_a_last_turn_that_is_not_learned_does_not_teach_the_end():
    found = made(task([record(TURNS[:3])], Causal(targets_length=64)), DECODER)
    assert found == [("", "user:hi.bot:yo.user:ok.|", "yo.")]


@pytest.mark.parametrize(
    ("length", "text", "learned"),
    [
        (32, "user:hi.bot:yo.user:ok.bot:bye.|", "yo.bye.|"),
        (31, "bot:yo.user:ok.bot:bye.|", "yo.bye.|"),
        (24, "bot:yo.user:ok.bot:bye.|", "yo.bye.|"),
        (23, "user:ok.bot:bye.|", "bye.|"),
        (16, "bot:bye.|", "bye.|"),
    ],
)
def test_the_oldest_turns_are_left_out_at_the_exact_length(length, text, learned):
    found = made(task([record(TURNS)], Causal(targets_length=length)), DECODER)
    assert found == [("", text, learned)]


def test_a_last_turn_that_is_too_long_makes_several_examples():
    rows = [record([("user", "hi"), ("bot", "abcdefghij")])]
    found = made(task(rows, Causal(targets_length=6)), DECODER)
    assert [text for _, text, _ in found] == ["bot:ab", "cdefgh", "ij.|"]
    assert "".join(learned for _, _, learned in found) == "abcdefghij.|"


def test_supervised_makes_an_example_of_each_learned_turn():
    found = made(task([record(TURNS)], Supervised(inputs_length=64, targets_length=64)), LAYOUT)
    assert found == [
        ("user:hi.bot:|", "yo|", "yo|"),
        ("user:hi.bot:yo.user:ok.bot:|", "bye|", "bye|"),
    ]
    # 28 tokens of inputs in all, then 27.
    for length, inputs in ((28, "user:hi.bot:yo.user:ok.bot:|"), (27, "bot:yo.user:ok.bot:|")):
        objective = Supervised(inputs_length=length, targets_length=64)
        assert made(task([record(TURNS)], objective), LAYOUT)[1][0] == inputs


def test_supervised_inputs_leave_room_for_a_first_token():
    special = ByteVocabulary(special=SpecialTokens(bos_id=2))
    objective = Supervised(inputs_length=28, targets_length=64)
    example = list(eval_examples(task([record(TURNS)], objective, vocabulary=special), "train"))[1]
    assert special.decode(example["inputs"][1:]) == "bot:yo.user:ok.bot:"
    assert example["inputs"][-1] == special.eos_id


def test_prefix_lm_learns_the_turns_behind_its_split(rng):
    rows = [record(TURNS)] * 12
    objective = PrefixLM(inputs_length=40, targets_length=40)
    full = "user:hi.bot:yo.user:ok.bot:bye."
    is_learned = [c in range(12, 15) or c in range(27, 31) for c in range(31)]
    splits = set()
    for example in eval_examples(task(rows, objective), "train"):
        batch = batch_of(lists.DecoderLayout(64, has_inputs=True), [[example]])
        split = len(example["inputs"])
        splits.add(split)
        weights = batch["decoder_loss_weights"][0]
        expected = [0] * split + [int(x) for x in is_learned[split:]] + [1]
        assert weights.tolist() == expected + [0] * (64 - len(expected))
        assert lists.shown(batch["decoder_target_tokens"][0][:32]) == full + "|"
        pair = batch_of(LAYOUT, [[example]])
        assert pair["decoder_loss_weights"][0].tolist()[: 32 - split] == expected[split:]
    assert len(splits) > 3


def test_records_without_a_learned_turn_give_no_example():
    rows = [record(TURNS[:1]), record([]), record(TURNS)]
    for objective in (Causal(targets_length=64), Supervised(inputs_length=64, targets_length=9)):
        layout = DECODER if isinstance(objective, Causal) else LAYOUT
        found = made(task(rows, objective), layout)
        assert found == made(task(rows[2:], objective), layout)


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
@pytest.mark.parametrize("pairs", [False, True], ids=["causal", "pairs"])
def test_batches_hold_every_turn_once_an_epoch_and_resume(pairs, packed, rng):
    rows = [record([("user", f"u{n}"), ("bot", f"b{n}"), ("bot", f"c{n}")]) for n in range(8)]
    objective = (
        Supervised(inputs_length=64, targets_length=64) if pairs else Causal(targets_length=60)
    )
    of = task(rows, objective)
    layout = LAYOUT if pairs else DECODER
    count = 8
    # Packing reads hundreds of examples ahead.
    rows_of = [3] if packed else range(streams.BATCH_SIZE)
    whole = streams.take(of, count, layout=layout, packed=packed, rows=rows_of)
    learned = [
        text
        for features, _ in whole
        for row in range(len(rows_of))
        for _, _, text in lists.examples(features, row)
    ]
    kinds = {re.sub(r"\d+", "n", text) for text in learned}
    assert kinds == ({"bn|", "cn|"} if pairs else {"bn.cn.|"})
    if not packed and pairs:
        # 8 steps of 8 rows are four epochs of 16 turns.
        assert {learned.count(f"b{n}|") for n in range(8)} == {4}
    step = int(rng.integers(1, count))
    cursors = whole[step - 1][1]
    again = streams.take(
        of, count - step, layout=layout, packed=packed, rows=rows_of, cursors=cursors
    )
    assert streams.digest([f for f, _ in again]) == streams.digest([f for f, _ in whole[step:]])


def test_packed_and_separate_dialogues_have_the_same_weights():
    rows = [record([("user", "x" * n), ("bot", f"b{n}")]) for n in range(6)]
    of = task(rows, Causal(targets_length=64))
    separate = made(of, DECODER)
    ((features, _),) = streams.take(of, 1, layout=DECODER, packed=True, rows=[2])
    packed = lists.examples(features, 0)
    assert len(packed) > 1
    assert set(packed) <= set(separate)


def test_questions_ask_for_each_learned_turn():
    objective = Supervised(inputs_length=64, targets_length=64)
    of = task([record(TURNS)] * 2, objective, metrics=["exact_match"])
    asked = list(questions(of, "validation"))
    assert [question.answers for question in asked] == [["yo"], ["bye"]] * 2


@pytest.mark.parametrize("pairs", [False, True], ids=["causal", "pairs"])
def test_statistics_count_texts_without_weights(pairs):
    objective = (
        Supervised(inputs_length=64, targets_length=64) if pairs else Causal(targets_length=60)
    )
    of = task([record(TURNS)], objective)
    lengths = task_statistics(of, "train", max_records=5).lengths
    assert lengths["targets"].largest == (3 if pairs else 31)
    text = "yobye" if pairs else "user:hi.bot:yo.user:ok.bot:bye."
    counts = np.unique(VOCABULARY.encode(text), return_counts=True)[1] / len(text)
    assert unigram_entropy(of, "train") == pytest.approx(-np.sum(counts * np.log(counts)))


def test_sentencepiece_encodes_turns_as_the_whole_text(sentencepiece_model, seed):
    rng = np.random.default_rng(seed)
    vocabulary = SentencePieceVocabulary(path=sentencepiece_model)
    words = ["the", "language", "of", "a", "Python", "statement", "x1"]
    for template in ("{role}: {text}\n", "<extra_id_1>{role}: {text}<extra_id_2>"):
        turns = [(str(rng.choice(["the", "is"])), " ".join(rng.choice(words, 4))) for _ in range(5)]
        dialogue = Dialogue(learn=["is"], template=template)
        found = encoded_turns(dialogue, {"turns": as_field(record(turns)["turns"])}, vocabulary)
        whole = "".join(template.replace("{role}", r).replace("{text}", t) for r, t in turns)
        ids = np.concatenate([turn.ids for turn in found])
        assert ids.tolist() == vocabulary.encode(whole).tolist(), seed


def test_columns_of_tfds_are_turns():
    columns = JsonText('{"role": ["user", "bot"], "text": ["hi", "yo"]}')
    turns = encoded_turns(SHORT, {"turns": columns}, VOCABULARY)
    assert [VOCABULARY.decode(turn.ids) for turn in turns] == ["user:hi.", "bot:yo."]
    assert [turn.is_learned for turn in turns] == [False, True]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"inputs": "{q}"}, "Task.inputs must be None with Task.dialogue"),
        ({"targets": "{a}"}, "Task.targets must be left out with Task.dialogue"),
        ({"join_documents": True}, "Task.join_documents must be False with Task.dialogue"),
        ({"token_cache": "x"}, "Task.token_cache must be None with Task.dialogue"),
        ({"objective": SpanCorruption(inputs_length=9)}, "such as Causal, PrefixLM and Supervised"),
        ({"references": "a"}, "Task.references must be None with Task.dialogue"),
    ],
    ids=range(6),
)
def test_what_conflicts_with_a_dialogue_is_rejected(choices, message):
    objective = choices.pop("objective", Causal(targets_length=9))
    if "references" in choices:
        objective = Supervised(inputs_length=9, targets_length=9)
    with pytest.raises(UserError, match=message):
        task([record(TURNS)], objective, **choices)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"turn": []}, "record 0: Dialogue.turns names the field 'turns'.*'turn'"),
        ({"turns": "hi"}, "record 0: Dialogue.turns: the field 'turns' must be a list of objects"),
        ({"turns": [{"role": 1, "text": "a"}]}, "Dialogue.role names 'role', which a turn has no"),
        ({"turns": [{"role": "bot", "said": "a"}]}, "turn 0: .*names the field 'text'"),
        ({"turns": {"role": ["bot"], "text": []}}, "must be a list of objects"),
    ],
    ids=range(5),
)
def test_wrong_turns_are_named(row, message):
    with pytest.raises(UserError, match=message):
        task([row], Causal(targets_length=9)).tokens("train")[0]
