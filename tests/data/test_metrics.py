import pytest

from t5lite.core.errors import UserError
from t5lite.data import metrics


def test_bleu_is_sacrebleus_with_several_references_some_missing():
    import sacrebleu

    answers = [["the cat sat on the mat .", "a cat was on the mat ."], ["hello there , world !"]]
    predictions = ["the cat was on the mat .", "hello there world !"]
    made = metrics.bleu(answers, predictions)["bleu_percent"]
    streams = [
        ["the cat sat on the mat .", "hello there , world !"],
        ["a cat was on the mat .", ""],
    ]
    assert made == sacrebleu.corpus_bleu(predictions, [streams[0], [streams[1][0], None]]).score
    # A further right answer never lowers the score.
    assert made > sacrebleu.corpus_bleu(predictions, [streams[0]]).score


def test_bleu_of_tokens_is_the_formula():
    # Matches: 5 of 6 words, 3 of 5 bigrams, 2 of 4 trigrams, 1 of 3 4-grams. No brevity penalty.
    made = metrics.bleu_of_tokens([["a b c d e f"]], ["a b x d e f"])["bleu_of_tokens_percent"]
    by_hand = metrics.bleu_of_tokens([["a b c d e f"]], ["b c d e x f"])["bleu_of_tokens_percent"]
    assert by_hand == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    # No 4-gram matches: sacrebleu smooths.
    assert 0 < made < by_hand


def test_rouge_takes_the_best_answer():
    scores = metrics.rouge([["the cat", "a dog ran"]], ["a dog"])
    assert scores["rouge1_f1_fraction"] == pytest.approx(2 * 1.0 * (2 / 3) / (1 + 2 / 3))
    assert scores.keys() == {f"rouge{x}_f1_fraction" for x in ("1", "2", "_lsum")}


def test_rouge_splits_sentences_at_full_stops():
    scores = metrics.rouge([["a cat sat . the dog ran ."]], ["the dog ran . a cat sat ."])
    assert scores["rouge_lsum_f1_fraction"] == 1.0


def test_chrf_of_the_same_text_is_100():
    assert metrics.chrf([["ein Haus"]], ["ein Haus"]) == {"chrf_percent": 100.0}


def test_squad_takes_the_best_answer_of_each_question():
    answers = [["Denver Broncos", "the Denver Broncos!", "Broncos"], ["1999", "in 1999"]]
    scores = metrics.squad(answers, ["the Broncos", "year 1999"])
    assert scores["squad_exact_match_fraction"] == 0.5
    assert scores["squad_f1_fraction"] == pytest.approx((1.0 + 2 / 3) / 2)


def test_squad_f1_of_an_answer_without_words_is_0():
    scores = metrics.squad([["The"]], ["a"])
    assert scores == {"squad_exact_match_fraction": 1.0, "squad_f1_fraction": 0.0}


def test_a_metric_without_its_package_is_rejected(monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'bleu' needs sacrebleu, .*pip install 't5lite\[metrics"):
        metrics.metric("bleu")


def test_squad_without_an_answer_is_right_for_an_empty_prediction():
    scores = metrics.squad([[""], [""]], ["", "x"])
    assert scores == {"squad_exact_match_fraction": 0.5, "squad_f1_fraction": 0.5}
    assert metrics.word_f1([[""]], [""]) == {"word_f1_fraction": 1.0}


@pytest.mark.parametrize(
    ("name", "got"), [("fails", "ZeroDivisionError: none"), ("returns_a_list", "AttributeError")]
)
def test_a_failing_user_metric_is_reported_on_one_line(name, got):
    name = f"tests.data.test_metrics:{name}"
    with pytest.raises(UserError, match=f"{name}' must return numbers by name, got {got}"):
        metrics.metric(name)([["a"]], ["b"])


def fails(answers, predictions):
    raise ZeroDivisionError("none")


def returns_a_list(answers, predictions):
    return [0.5]
