"""From an example, inputs and targets of any length, to a row of a batch.

A batch is a dict of int32 [batch, length] arrays with the field's usual names:

    encoder_input_tokens    encoder_segment_ids
    decoder_input_tokens    decoder_segment_ids    decoder_target_tokens    decoder_loss_weights

Zero is padding here, in the data, and segment ids say what is padding to the model.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from t5lite.data.vocabularies import PAD_ID

Row = dict[str, Int[np.ndarray, "_"]]

# What a decoder is given before the first target; T5 has no token of its own for it.
BOS_ID = PAD_ID


def row_from_example(
    example: Mapping[str, Int[np.ndarray, "_"]], *, inputs_length: int, targets_length: int
) -> Row:
    """Returns the row that holds one example alone, padded; without inputs, no encoder fields.

    The decoder is given the targets one place later, behind a 0, unless the example brings
    `decoder_inputs` of its own.

    >>> example = {"inputs": np.array([5, 6, 1]), "targets": np.array([7, 1])}
    >>> row = row_from_example(example, inputs_length=4, targets_length=3)
    >>> row["encoder_input_tokens"].tolist(), row["encoder_segment_ids"].tolist()
    ([5, 6, 1, 0], [1, 1, 1, 0])
    >>> row["decoder_input_tokens"].tolist(), row["decoder_target_tokens"].tolist()
    ([0, 7, 0], [7, 1, 0])
    """
    targets = example["targets"]
    shifted = np.concatenate([[BOS_ID], targets[:-1]]) if len(targets) else targets
    decoder_inputs = example.get("decoder_inputs", shifted)
    present = np.ones(len(targets), np.int32)
    row = {
        "decoder_input_tokens": _padded(decoder_inputs, targets_length),
        "decoder_segment_ids": _padded(present, targets_length),
        "decoder_target_tokens": _padded(targets, targets_length),
        "decoder_loss_weights": _padded(present, targets_length),
    }
    if inputs_length:
        inputs = example["inputs"]
        row["encoder_input_tokens"] = _padded(inputs, inputs_length)
        row["encoder_segment_ids"] = _padded(np.ones(len(inputs), np.int32), inputs_length)
    return row


def empty_row(*, inputs_length: int, targets_length: int) -> Row:
    """Returns a row of padding, which counts for nothing."""
    nothing = np.zeros(0, np.int32)
    return row_from_example(
        {"inputs": nothing, "targets": nothing},
        inputs_length=inputs_length,
        targets_length=targets_length,
    )


def _padded(tokens: Int[np.ndarray, "_"], length: int) -> Int[np.ndarray, "{length}"]:
    assert len(tokens) <= length, (len(tokens), length)
    padded = np.full(length, PAD_ID, np.int32)
    padded[: len(tokens)] = tokens
    return padded
