import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.data.batching.features import (
    DecoderLayout,
    EncoderDecoderLayout,
    EncoderLayout,
    batch_of,
)
from t5lite.data.batching.packing import choose_row
from t5lite.data.batching.readers import TextPosition
from t5lite.data.batching.row_stream import Cursor, RowStream
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.masks import AttentionMask
from tests import small
from tests.data import streams
from tests.proofs import proof

# The order of summation of a few hundred float32 losses differs.
LOSS_TOLERANCE = 2e-6


def _example(rng, inputs, targets):
    draw = lambda n: rng.integers(3, 259, n).astype(np.int32)  # noqa: E731
    return {"inputs": draw(inputs), "targets": draw(targets)}


def _losses(model, batch):
    logits = small.logits(model, small.params(model), batch)
    sums = CrossEntropy().sums(
        logits,
        jnp.asarray(batch["decoder_target_tokens"]),
        jnp.asarray(batch["decoder_loss_weights"]),
    )
    return float(sums["loss"]), float(sums["tokens"])


@pytest.mark.parametrize("kind", ["encoder_decoder", proof("decoder"), proof("prefix")])
def test_a_packed_batch_has_the_losses_of_the_unpacked_one(kind, rng):
    lengths = [(5, 3), (0, 4), (7, 2), (4, 0), (1, 1), (9, 5), (0, 1)]
    examples = [_example(rng, *pair) for pair in lengths]
    if kind == "encoder_decoder":
        model, layout = EncoderDecoder(small.config()), EncoderDecoderLayout(28, 17)
    else:
        prefix = kind == "prefix"
        model = DecoderOnly(small.decoder_config(prefix_attention=prefix))
        layout = DecoderLayout(45, has_inputs=True)
    packed = batch_of(layout, [examples[:4], examples[4:]])
    apart = batch_of(layout, [[example] for example in examples])
    some, other = _losses(model, packed), _losses(model, apart)
    assert some[1] == other[1] == sum(targets for _, targets in lengths)
    assert some[0] == pytest.approx(other[0], rel=LOSS_TOLERANCE)


def test_an_example_without_tokens_in_a_feature_keeps_its_segment():
    rng = np.random.default_rng(0)
    examples = [_example(rng, *pair) for pair in [(3, 2), (0, 3), (2, 2)]]
    batch = batch_of(EncoderDecoderLayout(6, 8), [examples])
    assert batch["encoder_segment_ids"][0].tolist() == [1, 1, 1, 3, 3, 0]
    assert batch["decoder_segment_ids"][0].tolist() == [1, 1, 2, 2, 2, 3, 3, 0]
    mask = AttentionMask(
        query_segment_ids=jnp.asarray(batch["decoder_segment_ids"]),
        key_segment_ids=jnp.asarray(batch["encoder_segment_ids"]),
    )
    sees = mask.to_array(8, 6)[0, 0]
    # The second example has no inputs to attend to.
    np.testing.assert_array_equal(
        sees.sum(axis=1), [3, 3, 0, 0, 0, 2, 2, 0], err_msg="keys that each position may attend to"
    )


def test_a_decoder_row_weighs_only_targets_and_marks_the_prefix():
    example = {"inputs": np.array([5, 6, 7]), "targets": np.array([8, 1])}
    batch = batch_of(DecoderLayout(8, has_inputs=True), [[example]])
    fields = {name: array[0].tolist() for name, array in batch.items()}
    assert fields == {
        "decoder_input_tokens": [0, 5, 6, 7, 8, 0, 0, 0],
        "decoder_target_tokens": [5, 6, 7, 8, 1, 0, 0, 0],
        "decoder_loss_weights": [0, 0, 0, 1, 1, 0, 0, 0],
        "decoder_segment_ids": [1, 1, 1, 1, 1, 0, 0, 0],
        "decoder_causal_attention": [1, 1, 1, 1, 0, 0, 0, 0],
    }


def test_an_encoder_row_weighs_only_masked_positions():
    example = {
        "inputs": np.array([9, 6, 1]),
        "targets": np.array([5, 6, 1]),
        "target_weights": np.array([1, 0, 0]),
    }
    batch = batch_of(EncoderLayout(7), [[example, example]])
    assert batch["encoder_loss_weights"].tolist() == [[1, 0, 0, 1, 0, 0, 0]]
    assert batch["encoder_target_tokens"].tolist() == [[5, 6, 1, 5, 6, 1, 0]]
    assert batch["encoder_segment_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 0]]


@pytest.mark.parametrize("capacity", [(50,), (50, 20)])
def test_a_row_holds_the_oldest_example_and_does_not_overflow(capacity, rng):
    for _ in range(300):
        sizes = [
            tuple(int(rng.integers(0, room + 1)) for room in capacity)
            for _ in range(rng.integers(1, 40))
        ]
        row = choose_row(sizes, capacity)
        assert row[0] == 0
        assert row == sorted(set(row))
        for axis, room in enumerate(capacity):
            assert sum(sizes[index][axis] for index in row) <= room


@pytest.mark.parametrize(
    ("lengths", "least"),
    [((20, 401), 0.97), ((200, 401), 0.6), ((1, 30), 0.97), ((512, 513), 1.0)],
    ids=["uneven", "half_rows", "short", "full"],
)
def test_rows_are_filled(lengths, least):
    """Uniform lengths of inputs, targets a fifth of them, into 512 and 128."""
    layout = EncoderDecoderLayout(512, 128)
    rng = np.random.default_rng(0)

    def make(number, places):
        inputs = int(rng.integers(*lengths))
        return {"inputs": np.zeros(inputs, int), "targets": np.zeros(inputs // 5, int)}, places

    stream = RowStream(make, layout, Cursor(0, (TextPosition(),)), packed=True)
    rows = [next(stream) for _ in range(400)]
    fill = sum(len(example["inputs"]) for row in rows for example in row) / (400 * 512)
    assert fill >= least


def test_rows_of_independent_lengths_are_filled_to_88_percent():
    layout = EncoderDecoderLayout(512, 512)
    rng = np.random.default_rng(0)

    def make(number, positions):
        inputs, targets = rng.integers(20, 401, 2)
        return {"inputs": np.zeros(inputs, int), "targets": np.zeros(targets, int)}, positions

    stream = RowStream(make, layout, Cursor(0, (TextPosition(),)), packed=True)
    rows = [next(stream) for _ in range(400)]
    fill = sum(len(part) for row in rows for each in row for part in each.values())
    assert 0.86 <= fill / (400 * 1024) <= 0.9


def test_a_cursor_of_version_0_1_is_read():
    fields = {"taken": [4], "pla" + "ces": [[1, 2], [0, 0]], "example": 3}
    cursor = Cursor.from_json(fields)
    assert cursor == Cursor(3, (TextPosition(1, 2), TextPosition(0, 0)), (4,))
    assert Cursor.from_json(cursor.to_json()) == cursor


def test_a_cursor_is_small(tmp_path):
    streams.write_files(tmp_path)
    batches = streams.take(streams.mixture(str(tmp_path)), 60)
    sizes = [len(str(cursor.to_json())) for _, cursors in batches for cursor in cursors]
    assert max(sizes) < 1000


@pytest.mark.parametrize("prefix", [False, True], ids=["causal", "prefix"])
def test_a_decoder_attends_to_later_inputs_only_with_prefix_attention(prefix):
    model = DecoderOnly(small.decoder_config(prefix_attention=prefix))
    params, layout = small.params(model), DecoderLayout(12, has_inputs=True)
    first = _example(np.random.default_rng(0), 5, 4)
    later = {**first, "inputs": first["inputs"].copy()}
    later["inputs"][4] += 1
    last = {**first, "targets": first["targets"].copy()}
    last["targets"][2] += 1
    logits = [
        np.asarray(small.logits(model, params, batch_of(layout, [[example]])))[0]
        for example in (first, later, last)
    ]
    # Token 4 of the inputs is at position 5 of the decoder.
    assert np.array_equal(logits[0][:5], logits[1][:5]) != prefix
    assert not np.array_equal(logits[0][5], logits[1][5])
    # Token 2 of the targets is at position 8; earlier positions do not attend to it.
    np.testing.assert_array_equal(logits[0][:8], logits[2][:8])
