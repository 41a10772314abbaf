import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.models.architectures import DecoderOnly
from t5lite.models.frozen import FrozenModel, JoinedRows, SameRows
from tests import small
from tests.proofs import proof

EOS = 1
# The same products of a row, with more or fewer rows and padding.
ROUNDING = 2e-5
SIZES = {"embed_dim": 8, "num_decoder_layers": 1}


def batch_of_rows(rows, inputs_length, targets_length):
    """The batch of rows of pairs (inputs, targets), written without the package."""
    shapes = {"encoder_input_tokens": inputs_length, "encoder_segment_ids": inputs_length}
    names = ("input_tokens", "segment_ids", "target_tokens", "loss_weights")
    shapes |= {f"decoder_{name}": targets_length for name in names}
    batch = {name: np.zeros((len(rows), length), np.int32) for name, length in shapes.items()}
    for row, examples in enumerate(rows):
        at, to = 0, 0
        for segment, (inputs, targets) in enumerate(examples, start=1):
            batch["encoder_input_tokens"][row, at : at + len(inputs)] = inputs
            batch["encoder_segment_ids"][row, at : at + len(inputs)] = segment
            here = slice(to, to + len(targets))
            batch["decoder_target_tokens"][row, here] = targets
            batch["decoder_input_tokens"][row, here] = [0, *targets[:-1]]
            batch["decoder_segment_ids"][row, here] = segment
            batch["decoder_loss_weights"][row, here] = 1
            at += len(inputs)
            to += len(targets)
    return {name: jnp.asarray(x) for name, x in batch.items()}


def expected_logits(model, params, inputs, targets, *, start, length):
    """The teacher's logits of one example, in a row of its own with padding after it."""
    first = [] if start is None else [start]
    tokens = [*first, *inputs, *targets]
    row = np.zeros((1, length), np.int32)
    row[0, : len(tokens)] = tokens
    prefix = (np.arange(length) < len(first) + len(inputs)).astype(np.int32)[None]
    batch = {
        "decoder_input_tokens": row,
        "decoder_segment_ids": (np.arange(length) < len(tokens)).astype(np.int32)[None],
        "decoder_causal_attention": prefix,
    }
    logits = np.asarray(small.logits(model, params, batch))[0]
    before = len(first) + len(inputs) - 1
    return [logits[before + t] if before + t >= 0 else None for t in range(len(targets))]


def predictions(teacher, batch):
    """Which targets a teacher predicts, and its logits of all."""
    hidden, known = teacher.hidden(batch)
    return known, teacher.logits(hidden)


@pytest.fixture
def examples(rng):
    """Inputs and targets of seven examples; the first has no inputs, the last no end."""
    lengths = [(0, 3), (4, 2), (1, 4), (5, 1), (2, 2), (3, 3), (2, 1)]
    pairs = [(rng.integers(3, 259, a), [*rng.integers(3, 259, b), EOS]) for a, b in lengths]
    return [*pairs[:-1], (pairs[-1][0], pairs[-1][1][:-1])]


@pytest.mark.parametrize(
    ("packed", "start", "prefix"),
    [proof(False, None, False), (True, None, True), proof(False, 5, True)],
)
def test_each_target_has_the_logits_of_the_token_before_it(packed, start, prefix, examples):
    model = DecoderOnly(small.decoder_config(**SIZES, prefix_attention=prefix))
    params = small.params(model)
    groups = [examples[:3], examples[3:5], examples[5:]] if packed else [[e] for e in examples]
    lengths = (8, 13) if packed else (5, 5)
    rows = [*groups, []]
    batch = batch_of_rows(rows, *lengths)
    # What an objective says of the longest example; its last token is read by no target.
    length = sum(lengths) if packed else max(len(a) + len(b) for a, b in examples)
    joined = JoinedRows(length=length, start_token=start, unknown_eos=EOS)
    teacher = FrozenModel(model, params, joined, vocab_size=390)
    known, logits = map(np.asarray, jax.jit(lambda batch: predictions(teacher, batch))(batch))
    assert logits.shape == (*batch["decoder_target_tokens"].shape, 390)
    checked = 0
    for row, group in enumerate(rows):
        to = 0
        for inputs, targets in group:
            wanted = expected_logits(model, params, inputs, targets, start=start, length=12)
            for t, of_target in enumerate(wanted):
                is_end = t == len(targets) - 1 and targets[t] == EOS
                assert bool(known[row, to]) == (of_target is not None and not is_end)
                if known[row, to]:
                    np.testing.assert_allclose(logits[row, to, :384], of_target, atol=ROUNDING)
                    checked += 1
                to += 1
        assert not np.any(known[row, to:])
    assert checked == (15 if start is None else 16)
    # The student has six more ids.
    assert np.all(logits[..., 384:] < -1e8)


def test_a_teacher_that_predicts_ends_knows_all_targets_of_its_own_rows(examples):
    batch = batch_of_rows([examples[:2], [examples[6]]], 5, 8)
    is_target = np.asarray(batch["decoder_segment_ids"]) > 0
    rows = SameRows()(batch)
    assert rows.batch is batch
    assert rows.positions is None
    np.testing.assert_array_equal(rows.known, is_target)
    ends = np.asarray(batch["decoder_target_tokens"]) == EOS
    np.testing.assert_array_equal(SameRows(unknown_eos=EOS)(batch).known, is_target & ~ends)


def test_an_end_inside_a_target_is_known_and_a_smaller_vocabulary_is_cut(rng):
    inputs = rng.integers(3, 259, 3)
    batch = batch_of_rows([[(inputs, [7, EOS, 8, EOS])]], 3, 4)
    rows = JoinedRows(length=7, unknown_eos=EOS)(batch)
    assert rows.known.tolist() == [[True, True, True, False]]
    model = DecoderOnly(small.decoder_config(**SIZES))
    teacher = FrozenModel(model, small.params(model), SameRows(), vocab_size=300)
    assert jax.eval_shape(teacher.logits, jnp.ones((1, 2, 8))).shape == (1, 2, 300)
