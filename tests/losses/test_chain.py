import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from t5lite.core.errors import UserError
from t5lite.core.transitions import Transitions
from t5lite.losses.chain import CRF, best_path, chain_of, log_partition, path_score
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import check_structure
from t5lite.models.architectures import EncoderOnly, ModelApply
from t5lite.models.classifier import Classes
from tests import small

# Of sums of a few float32 numbers.
ROUNDING = 2e-5
# Two examples in a packed row, whose tags are 3 and 2 of 7 tokens; a row of one; padding alone.
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1] * 8, [0] * 8], np.int32)
COUNTS = np.array([[1, 0, 1, 1, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1, 0, 1], [0] * 8], bool)


def scores_of_paths(logits, scores, segments, counts):
    """Every path of each example, with its score, in float64: (positions, paths, scores)."""
    pairs, first, last = (np.asarray(x, np.float64) for x in scores)
    found = []
    for example in sorted(set(segments[counts])):
        positions = np.flatnonzero(counts & (segments == example))
        paths = list(itertools.product(range(logits.shape[-1]), repeat=len(positions)))
        totals = [
            first[path[0]]
            + sum(np.float64(logits[at, y]) for at, y in zip(positions, path, strict=True))
            + sum(pairs[a, b] for a, b in itertools.pairwise(path))
            + last[path[-1]]
            for path in paths
        ]
        found.append((positions, paths, np.array(totals)))
    return found


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 8, 3)).astype(np.float32)
    shapes = ((3, 3), (3,), (3,))
    scores = Transitions(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes))
    path = rng.integers(0, 3, (3, 8)) * COUNTS
    return logits, scores, path


def test_partition_and_path_score_are_those_of_all_paths(case):
    logits, scores, path = case
    chain = chain_of(jnp.asarray(COUNTS), jnp.asarray(SEGMENTS))
    partition = log_partition(jnp.asarray(logits), scores, chain)
    score = path_score(jnp.asarray(logits), scores, chain, jnp.asarray(path))
    for row in range(3):
        examples = scores_of_paths(logits[row], scores, SEGMENTS[row], COUNTS[row])
        wanted = sum(logsumexp(totals) for _, _, totals in examples)
        assert partition[row] == pytest.approx(wanted, abs=ROUNDING)
        own = sum(
            totals[paths.index(tuple(path[row, positions]))]
            for positions, paths, totals in examples
        )
        assert score[row] == pytest.approx(own, abs=ROUNDING)


def test_best_path_is_the_best_of_all(case):
    logits, scores, _ = case
    chain = chain_of(jnp.asarray(COUNTS), jnp.asarray(SEGMENTS))
    found, score = best_path(jnp.asarray(logits), scores, chain)
    for row in range(3):
        examples = scores_of_paths(logits[row], scores, SEGMENTS[row], COUNTS[row])
        wanted = np.zeros(8, int)
        for positions, paths, totals in examples:
            wanted[positions] = paths[int(np.argmax(totals))]
        assert found[row].tolist() == wanted.tolist()
        assert score[row] == pytest.approx(sum(t.max() for _, _, t in examples), abs=ROUNDING)


def test_a_packed_row_has_the_loss_of_its_examples_apart():
    classes = Classes(count=3, per_token=True, structure="chain")
    model = EncoderOnly(small.config(num_decoder_layers=0, tied_logits=True), classes)
    params = small.params(model)
    rng = np.random.default_rng(3)
    drawn = jax.tree.map(lambda x: rng.normal(size=x.shape), params["classifier"]["transitions"])
    params = {**params, "classifier": {**params["classifier"], "transitions": drawn}}
    tokens, numbers = rng.integers(3, 259, (1, 8)), rng.integers(0, 3, (1, 8))

    # The packed row, and its examples in rows of their own.
    parts = [SEGMENTS[0] >= 0, SEGMENTS[0] == 1, SEGMENTS[0] == 2]
    rows = np.zeros((4, len(parts), 8), np.int32)
    for row, keep in enumerate(parts):
        values = (tokens[0], SEGMENTS[0], numbers[0], COUNTS[0])
        for each, value in zip(rows, values, strict=True):
            each[row, : keep.sum()] = value[keep]
    names = ("input_tokens", "segment_ids", "target_tokens", "loss_weights")
    batch = {f"encoder_{n}": jnp.asarray(x) for n, x in zip(names, rows, strict=True)}
    sums = jax.jit(lambda p: CRF()(ModelApply(model), p, batch, by_row=True))(params)
    assert sums["tokens"].tolist() == [5, 3, 2]
    for name, (packed, *apart) in sums.items():
        assert packed == pytest.approx(float(sum(apart)), abs=ROUNDING), name


NEEDS = "{} needs Classes.structure='{}', got Classes.structure='{}'; bind train.loss = @{}"


@pytest.mark.parametrize(
    ("loss", "structure", "message"),
    [
        (CrossEntropy(), "chain", NEEDS.format("CrossEntropy", "independent", "chain", "CRF")),
        (CRF(), "independent", NEEDS.format("CRF", "chain", "independent", "CrossEntropy")),
    ],
)
def test_a_loss_of_another_structure_is_rejected(loss, structure, message):
    with pytest.raises(UserError, match=message):
        check_structure(loss, structure)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"structure": "tree"}, "Classes.structure.*'tree'"),
        ({"per_token": False}, "must be 'independent', its default, or 'ranking' without"),
    ],
)
def test_wrong_structures_are_rejected(choices, message):
    with pytest.raises(UserError, match=message):
        Classes(**{"count": 2, "per_token": True, "structure": "chain", **choices})
