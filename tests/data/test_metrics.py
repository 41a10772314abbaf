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
    # More right answers can only help.
    assert made > sacrebleu.corpus_bleu(predictions, [streams[0]]).score


def test_bleu_of_tokens_is_the_formula():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; as long as its answer.
    made = metrics.bleu_of_tokens([["a b c d e f"]], ["a b x d e f"])["bleu_of_tokens_percent"]
    by_hand = metrics.bleu_of_tokens([["a b c d e f"]], ["b c d e x f"])["bleu_of_tokens_percent"]
    assert by_hand == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    # No four words in a row: sacrebleu smooths.
    assert 0 < made < by_hand


def test_rouge_takes_the_best_answer():
    scores = metrics.rouge([["the cat", "a dog ran"]], ["a dog"])
    assert scores["rouge1_f1_fraction"] == pytest.approx(2 * 1.0 * (2 / 3) / (1 + 2 / 3))
    assert scores.keys() == {f"rouge{x}_f1_fraction" for x in ("1", "2", "_lsum")}


def test_rouge_takes_what_stands_between_full_stops_as_sentences():
    scores = metrics.rouge([["a cat sat . the dog ran ."]], ["the dog ran . a cat sat ."])
    assert scores["rouge_lsum_f1_fraction"] == 1.0


def test_chrf_of_the_same_text_is_full():
    assert metrics.chrf([["ein Haus"]], ["ein Haus"]) == {"chrf_percent": 100.0}


def test_squad_takes_the_best_answer_of_each_question():
    answers = [["Denver Broncos", "the Denver Broncos!", "Broncos"], ["1999", "in 1999"]]
    scores = metrics.squad(answers, ["the Broncos", "year 1999"])
    assert scores["squad_exact_match_fraction"] == 0.5
    assert scores["squad_f1_fraction"] == pytest.approx((1.0 + 2 / 3) / 2)


def test_squad_has_nothing_in_common_with_an_empty_answer():
    scores = metrics.squad([["The"]], ["a"])
    assert scores == {"squad_exact_match_fraction": 1.0, "squad_f1_fraction": 0.0}


def test_a_metric_whose_package_is_missing_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'bleu' needs sacrebleu, .*pip install 't5lite\[metrics"):
        metrics.metric("bleu")


@pytest.mark.parametrize(
    ("name", "got"), [("fails", "ZeroDivisionError: none"), ("tells_no_numbers", "AttributeError")]
)
def test_a_metric_of_ones_own_that_fails_is_told_on_one_line(name, got):
    name = f"tests.data.test_metrics:{name}"
    with pytest.raises(UserError, match=f"{name}' must return numbers by name, got {got}"):
        metrics.metric(name)([["a"]], ["b"])


def fails(answers, predictions):
    raise ZeroDivisionError("none")


def tells_no_numbers(answers, predictions):
    return [0.5]
