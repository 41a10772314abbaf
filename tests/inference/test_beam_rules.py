"""Beam search against one written down in Python, for every rule of ending and ranking."""

import functools
import itertools

import jax
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.inference.beam_search import beam_search
from t5lite.inference.decoding import EARLY_STOPPING, LENGTH_NORMALIZATIONS, Decoding
from tests import small
from tests.inference.test_decoding import MODEL, batch, params
from tests.proofs import proofs_but

VOCABULARY = range(6)
# A likely token, so that targets end at every length and the rules of ending matter.
EOS = 2
SHARPNESS = 0.7
LENGTH = 5
BEAMS = 3


@jax.jit
def searched(params, batch, decoding):
    return beam_search(MODEL, params, batch, decoding, length=LENGTH, stop_ids=(EOS,))


def stripped(tokens):
    """The tokens without the padding after the stop."""
    tokens = tokens.tolist()
    return tuple(tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens)


@functools.cache
def next_log_probabilities(row):
    """The log-probabilities of the next token after every prefix that has not ended."""
    found = {}
    for size in range(LENGTH):
        prefixes = list(itertools.product([v for v in VOCABULARY if v != EOS], repeat=size))
        tokens = np.array([[0, *prefix] for prefix in prefixes], np.int32)
        given = {name: np.repeat(x[row : row + 1], len(prefixes), 0) for name, x in batch().items()}
        given |= {"decoder_input_tokens": tokens, "decoder_segment_ids": np.ones_like(tokens)}
        logits = small.logits(MODEL, params(SHARPNESS), given)
        last = np.asarray(jax.nn.log_softmax(logits), np.float64)[:, -1]
        found |= dict(zip(prefixes, last, strict=True))
    return found


def python_beams(row, alpha, normalization, early_stopping):
    """Returns the targets with their scores, the best first."""

    def score(total, tokens):
        return total / (tokens if normalization == "tokens" else (5 + tokens) / 6) ** alpha

    running, finished = [(0.0, ())], []
    for size in range(1, LENGTH + 1):
        candidates = [
            (total + next_log_probabilities(row)[tokens][token], (*tokens, token))
            for total, tokens in running
            for token in VOCABULARY
        ]
        candidates = sorted(candidates, reverse=True)[: 2 * BEAMS]
        ended = [tokens[-1] == EOS or size == LENGTH for _, tokens in candidates]
        finished += [
            (score(total, size), tokens)
            for (total, tokens), ends in zip(candidates[:BEAMS], ended[:BEAMS], strict=True)
            if ends
        ]
        finished = sorted(finished, reverse=True)[:BEAMS]
        open_ones = [c for c, ends in zip(candidates, ended, strict=True) if not ends]
        running = open_ones[:BEAMS]
        if not running:
            break
        reached = LENGTH if early_stopping == "never" else size
        is_full = len(finished) == BEAMS
        is_beaten = is_full and score(running[0][0], reached) <= finished[-1][0]
        if is_beaten or (is_full and early_stopping == "full"):
            break
    return finished


@pytest.mark.parametrize("early_stopping", proofs_but(("never",), EARLY_STOPPING))
@pytest.mark.parametrize("normalization", proofs_but(("gnmt",), LENGTH_NORMALIZATIONS))
def test_beams_equal_those_of_a_search_in_python(normalization, early_stopping):
    for alpha in (0.0, 0.6, 1.0, 2.0):
        decoding = Decoding(
            num_beams=BEAMS,
            length_penalty=alpha,
            length_normalization=normalization,
            early_stopping=early_stopping,
        )
        made = searched(params(SHARPNESS), batch(), decoding)
        for row in range(3):
            expected = python_beams(row, alpha, normalization, early_stopping)
            found = [stripped(tokens) for tokens in made.tokens[row]]
            assert found == [tokens for _, tokens in expected], (alpha, row)
            np.testing.assert_allclose(made.scores[row], [s for s, _ in expected], atol=1e-4)


def test_rules_of_ending_lead_to_different_beams():
    found = {
        rule: tuple(tuple(python_beams(row, 2.0, "tokens", rule)) for row in range(3))
        for rule in EARLY_STOPPING
    }
    assert len(set(found.values())) == len(EARLY_STOPPING)


@pytest.mark.parametrize("field", ["length_normalization", "early_stopping"])
def test_unknown_rule_is_rejected(field):
    with pytest.raises(UserError, match=f"Decoding.{field} is unknown: got 'nver'"):
        Decoding(**{field: "nver"})
