import dataclasses
import json

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data import tokens
from t5lite.data.mixture import Mixture
from t5lite.data.sources.file_source import FileSource
from t5lite.data.storage.shards import summaries_of
from t5lite.data.task import Task
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.objectives.span_corruption import SpanCorruption
from t5lite.objectives.supervised import Supervised

VOCABULARY = ByteVocabulary()
ROWS = [
    {"en": "A Dog", "de": "Ein  Hund"},
    {"en": "<b>cat</b>", "de": "{Katze}"},
    {"en": "empty", "de": " "},
]


@pytest.fixture
def make_task(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def make(**choices):
        given = {
            "source": FileSource(
                files={"train": "pairs.jsonl"},
                fields=("en", "de"),
                folder=str(tmp_path),
                data_dir=str(tmp_path / "tfds"),
            ),
            "vocabulary": VOCABULARY,
            "objective": Supervised(inputs_length=64, targets_length=64),
            "inputs": "translate: {en}",
            "targets": "{de}",
        }
        return Task(**{**given, **choices})

    return make


def _texts(task):
    records = task.tokens("train")
    return [tuple(VOCABULARY.decode(text) for text in records[i]) for i in range(len(records))]


def test_templates_make_the_texts(make_task):
    assert _texts(make_task(targets="{{{de}}} ({en})"))[:2] == [
        ("translate: A Dog", "{Ein  Hund} (A Dog)"),
        ("translate: <b>cat</b>", "{{Katze}} (<b>cat</b>)"),
    ]


def test_preprocessors_change_and_drop_records_in_order(make_task):
    steps = ("lowercase", "strip_html_tags", "normalize_whitespace", "drop_if_any_empty")
    assert _texts(make_task(preprocessors=steps)) == [
        ("translate: a dog", "ein hund"),
        ("translate: cat", "{katze}"),
        (),
    ]


def shout(record):
    """A user's own preprocessor."""
    return {**record, "loud": record["en"].upper()}


def test_a_users_preprocessor_may_make_fields(make_task):
    task = make_task(preprocessors=["tests.data.test_task:shout"], inputs="{loud}")
    assert _texts(task)[0] == ("A DOG", "Ein  Hund")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"inputs": None}, "Task.inputs must be a template for Supervised, got None"),
        ({"objective": SpanCorruption(inputs_length=24)}, "Task.inputs must be None for SpanCorr"),
        ({"inputs": "{en!r}"}, r"name fields as in {text}, {text.0} or {text:, }, got {en}"),
        ({"inputs": "{en"}, "must be a template"),
        ({"inputs": "no field"}, "Task.inputs must name a field"),
        ({"name": "a/b"}, "Task.name must be of letters"),
        ({"preprocessors": ["lower"]}, "did you mean 'lowercase'"),
        ({"preprocessors": ["no_such_module:step"]}, "'no_such_module:step' cannot be imported"),
        ({"preprocessors": ["json:no_such"]}, "'json:no_such' cannot be imported"),
        ({"preprocessors": [":f"]}, "':f' cannot be imported"),
        ({"preprocessors": ["os:path"]}, "'os:path' must be a function, got module"),
    ],
)
def test_a_task_of_wrong_parts_is_rejected(choices, message, make_task):
    with pytest.raises(UserError, match=message):
        make_task(**choices)


def fail(record):
    """A preprocessor that fails."""
    raise ValueError("not today")


def as_text(record):
    """A preprocessor that returns no record."""
    return "text"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("fail", "'tests.data.test_task:fail' failed on record 0: ValueError: not today"),
        ("as_text", "must return the fields of a record or None, got str"),
    ],
)
def test_a_failing_preprocessor_is_named(step, message, make_task):
    with pytest.raises(UserError, match=message):
        make_task(preprocessors=[f"tests.data.test_task:{step}"]).tokens("train")[0]


def test_a_template_is_checked_against_preprocessed_records(make_task):
    task = make_task(preprocessors=["lowercase"], inputs="{eng}")
    with pytest.raises(UserError, match="record 0: .* names the field 'eng'; did you mean 'en'"):
        task.tokens("train")[0]


def test_a_template_with_an_unknown_field_is_rejected(make_task):
    with pytest.raises(UserError, match="Task.inputs .* names the field 'eng'; did you mean 'en'"):
        make_task(inputs="{eng}").tokens("train")


@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "text"])
@pytest.mark.parametrize("size", [100, 70000], ids=["uint16", "uint32"])
def test_a_cache_holds_the_same_tokens_and_is_built_once(
    pairs, size, make_task, tmp_path, monkeypatch
):
    choices = {
        "vocabulary": ByteVocabulary(num_sentinels=size),
        "preprocessors": ["drop_if_any_empty"],
    }
    if not pairs:
        choices |= {"inputs": None, "objective": SpanCorruption(inputs_length=24)}
    task = make_task(**choices)
    records = task.tokens("train")
    plain = [records[number] for number in range(len(records))]
    cache = dataclasses.replace(task, token_cache=str(tmp_path / "cache"))
    for _ in range(2):
        kept = cache.tokens("train")
        assert kept.fingerprint == records.fingerprint
        assert len(kept) == len(plain)
        for number in range(len(plain)):
            assert len(kept[number]) == len(plain[number])
            for some, other in zip(kept[number], plain[number], strict=True):
                np.testing.assert_array_equal(some, other)
        # The second time, encoding would fail.
        monkeypatch.setattr(tokens.Tokenized, "__getitem__", None)


def test_a_cache_depends_on_text_steps_vocabulary_and_code(make_task, tmp_path, monkeypatch):
    def folders(**choices):
        make_task(token_cache=str(tmp_path / "cache"), **choices).tokens("train")
        return len([p for p in (tmp_path / "cache").iterdir() if p.is_dir() and summaries_of(p)])

    assert folders() == folders() == 1
    assert folders(inputs="{en}") == 2
    assert folders(preprocessors=["lowercase"]) == 3
    assert folders(vocabulary=ByteVocabulary(num_sentinels=7)) == 4
    monkeypatch.setattr(tokens, "ENCODING_VERSION", -1)
    assert folders() == 5


def test_versions_of_scores_change_with_a_users_metric(make_task, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "def metric(answers, predictions):\n    return {'own_fraction': 0.5}\n"
    (tmp_path / "own_metric.py").write_text(code)
    task = make_task(metrics=["exact_match", "own_metric:metric"])
    exact, own = task.versions_of_scores()
    (tmp_path / "own_metric.py").write_text(code.replace("0.5", "0.25"))
    assert task.versions_of_scores()[0] == exact
    assert task.versions_of_scores()[1] != own


@pytest.fixture
def sized(tmp_path):
    """Tasks over sources of 10, 100 and 1000 records."""

    def make(count, **choices):
        (tmp_path / f"{count}.txt").write_text("text\n" * count)
        given = {
            "name": f"of{count}",
            "source": FileSource(
                files={"train": f"{count}.txt"},
                folder=str(tmp_path),
                data_dir=str(tmp_path / "tfds"),
            ),
            "vocabulary": VOCABULARY,
            "objective": SpanCorruption(inputs_length=24),
        }
        return Task(**{**given, **choices})

    return make


def test_rates_follow_sizes_limits_and_temperature(sized):
    tasks = [sized(count) for count in (10, 100, 1000)]
    mixed = Mixture(components=tasks)
    assert mixed.rates("train") == pytest.approx([10 / 1110, 100 / 1110, 1000 / 1110])
    mixed = Mixture(components=tasks, maximum_records=200)
    assert mixed.rates("train") == pytest.approx([10 / 310, 100 / 310, 200 / 310])
    mixed = Mixture(components=tasks, maximum_records=200, temperature=2.0)
    roots = np.sqrt([10, 100, 200])
    assert mixed.rates("train") == pytest.approx(list(roots / roots.sum()))


def test_a_nested_mixture_divides_its_share(sized):
    inner = Mixture(components=[sized(10), sized(100)])
    mixed = Mixture(components=[inner, sized(1000)], shares=[3.0, 1.0])
    assert mixed.rates("train") == pytest.approx([0.75 * 10 / 110, 0.75 * 100 / 110, 0.25])
    assert [task.name for task in mixed.tasks] == ["of10", "of100", "of1000"]


def test_the_identity_of_a_mixture_changes_with_its_rates(sized):
    first = Mixture(components=[sized(10), sized(100)], shares=[1.0, 2.0]).identity("train")
    other = Mixture(components=[sized(10), sized(100)], shares=[1.0, 3.0]).identity("train")
    assert {name for name in first if first[name] != other[name]} == {"rates"}
    assert {"of10.data", "of100.objective", "of10.vocabulary"} < first.keys()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"shares": [1.0, 0.0]}, "must be 2 numbers over 0, .*; remove a component"),
        ({"shares": [1.0]}, "must be 2 numbers over 0"),
        ({"shares": [float("inf"), 1.0]}, "must be 2 numbers over 0"),
        (
            {"shares": [1.0, 2.0], "temperature": 2.0},
            "Mixture.shares and Mixture.maximum_records or .* are mutually exclusive",
        ),
        ({"maximum_records": 0}, "maximum_records must be at least 1, got 0"),
        ({"temperature": 0.5}, "temperature must be at least 1, got 0.5"),
        ({"components": []}, "must be at least one task, got"),
        ({"components": ["a"]}, "must be tasks, as in"),
    ],
)
def test_wrong_mixtures_are_rejected(choices, message, sized):
    with pytest.raises(UserError, match=message):
        Mixture(**{"components": [sized(10), sized(100)], **choices})


def test_tasks_of_a_mixture_need_different_names_and_one_vocabulary(sized):
    with pytest.raises(UserError, match=r"must have different names .*, but 2 are 'same'"):
        Mixture(components=[sized(10, name="same"), sized(100, name="same")])
    other = sized(100, vocabulary=ByteVocabulary(num_sentinels=9))
    with pytest.raises(UserError, match="the same vocabulary: of10 has .*125.*of100 has .*9"):
        Mixture(components=[sized(10), other])


def test_the_order_of_tasks_is_part_of_the_identity(sized):
    tasks = [sized(10), sized(100)]
    identities = [
        Mixture(components=order, shares=[1.0, 1.0]).identity("train")
        for order in (tasks, tasks[::-1])
    ]
    assert identities[0] != identities[1]
