"""Layouts: how examples of any length fill the rows of a batch.

A batch is a dict of int32 [batch, length] arrays:

    encoder_input_tokens    encoder_segment_ids    encoder_token_types
    decoder_input_tokens    decoder_segment_ids    decoder_target_tokens    decoder_loss_weights
    encoder_pair_labels     encoder_query_ids      encoder_task_ids       decoder_task_ids

Padding tokens are 0. The model finds padding by segment ids only: 0 is padding, and the examples
of a row are 1, 2, ... in every feature, even if one of them has no tokens there. The candidates of
a query to rank are one example, and have a segment each.

A layout writes the parts of an example into a row. Packing uses its `capacity` and the `sizes` of
examples.
"""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from t5lite.core.batches import writing_side
from t5lite.core.errors import check_choice
from t5lite.core.examples import START_TOKEN, Example, Tokens

Features = dict[str, Int[np.ndarray, "rows _"]]


@runtime_checkable
class Layout(Protocol):
    """Positions of an example's tokens in a row.

    - `lengths`: tokens in a row, by feature name.
    - `capacity`: tokens that a row holds, one number per axis.
    - `sizes(example)`: tokens that an example takes on each axis.
    - `write(features, row, start, segment, example)`: writes an example into a row, at the
      positions `start`.
    """

    @property
    def lengths(self) -> dict[str, int]: ...
    @property
    def capacity(self) -> tuple[int, ...]: ...
    def sizes(self, example: Example) -> tuple[int, ...]: ...
    def write(
        self,
        features: Features,
        row: int,
        start: tuple[int, ...],
        segment: int,
        example: Example,
    ) -> None: ...


@dataclasses.dataclass(frozen=True)
class EncoderDecoderLayout:
    """The encoder reads the inputs and the decoder predicts the targets."""

    inputs_length: int
    targets_length: int
    start_token: int = START_TOKEN

    @property
    def lengths(self) -> dict[str, int]:
        encoder = ("encoder_input_tokens", "encoder_segment_ids")
        return {
            **dict.fromkeys(encoder, self.inputs_length),
            **dict.fromkeys(_DECODER, self.targets_length),
        }

    @property
    def capacity(self) -> tuple[int, ...]:
        return self.inputs_length, self.targets_length

    def sizes(self, example: Example) -> tuple[int, ...]:
        return len(example["inputs"]), len(example["targets"])

    def write(
        self, features: Features, row: int, start: tuple[int, ...], segment: int, example: Example
    ) -> None:
        inputs = example["inputs"]
        here = slice(start[0], start[0] + len(inputs))
        features["encoder_input_tokens"][row, here] = inputs
        features["encoder_segment_ids"][row, here] = segment
        _write_decoder(
            features, row, start[1], segment, example, example["targets"], self.start_token
        )


@dataclasses.dataclass(frozen=True)
class DecoderLayout:
    """The decoder reads the inputs and predicts the targets after them.

    With `has_inputs`, `decoder_causal_attention` is 1 for the inputs and the position after them,
    where a prefix language model attends in both directions.
    """

    length: int
    has_inputs: bool = False
    start_token: int = START_TOKEN

    @property
    def lengths(self) -> dict[str, int]:
        prefix = ("decoder_causal_attention",) if self.has_inputs else ()
        return dict.fromkeys((*_DECODER, *prefix), self.length)

    @property
    def capacity(self) -> tuple[int, ...]:
        return (self.length,)

    def sizes(self, example: Example) -> tuple[int, ...]:
        return (len(example["inputs"]) + len(example["targets"]),)

    def write(
        self, features: Features, row: int, start: tuple[int, ...], segment: int, example: Example
    ) -> None:
        at = start[0]
        inputs = example["inputs"]
        targets = example["targets"]
        both = np.concatenate([inputs, targets]) if len(inputs) else targets
        _write_decoder(features, row, at, segment, example, both, self.start_token)
        if len(inputs):
            features["decoder_loss_weights"][row, at : at + len(inputs)] = 0
            prefix = slice(at, at + min(len(inputs) + 1, len(both)))
            features["decoder_causal_attention"][row, prefix] = 1


@dataclasses.dataclass(frozen=True)
class EncoderLayout:
    """The encoder reads the inputs and predicts a target at every position.

    With `has_types`, `encoder_token_types` are the types of the inputs. With `has_pairs`,
    `encoder_pair_labels` is 1 at the first token of an example whose second part follows the first,
    2 at that of another, and 0 elsewhere. With `has_queries` the candidates of an example have
    segments of their own, and `encoder_query_ids` is the number of the example in the row.

    >>> two = {"inputs": np.array([5, 1, 6, 1]), "targets": np.array([1, 0, 0, 0])}
    >>> two["candidates"] = np.array([1, 1, 2, 2])
    >>> batch = batch_of(EncoderLayout(9, has_queries=True), [[two, two]])
    >>> for name in ("encoder_segment_ids", "encoder_query_ids"):
    ...     print(batch[name][0])
    [1 1 2 2 3 3 4 4 0]
    [1 1 1 1 2 2 2 2 0]
    """

    length: int
    # Not in the text by which runs of before resume; the objective's has it.
    has_types: bool = dataclasses.field(default=False, repr=False)
    has_pairs: bool = dataclasses.field(default=False, repr=False)
    has_queries: bool = dataclasses.field(default=False, repr=False)

    @property
    def lengths(self) -> dict[str, int]:
        names = ("input_tokens", "segment_ids", "target_tokens", "loss_weights")
        types = ("token_types",) if self.has_types else ()
        pairs = ("pair_labels",) if self.has_pairs else ()
        queries = ("query_ids",) if self.has_queries else ()
        names = (*names, *types, *pairs, *queries)
        return dict.fromkeys((f"encoder_{name}" for name in names), self.length)

    @property
    def capacity(self) -> tuple[int, ...]:
        return (self.length,)

    def sizes(self, example: Example) -> tuple[int, ...]:
        return (len(example["inputs"]),)

    def write(
        self, features: Features, row: int, start: tuple[int, ...], segment: int, example: Example
    ) -> None:
        here = slice(start[0], start[0] + len(example["inputs"]))
        segments = segment
        if self.has_queries:
            features["encoder_query_ids"][row, here] = segment
            segments = features["encoder_segment_ids"][row].max() + example["candidates"]
        features["encoder_input_tokens"][row, here] = example["inputs"]
        features["encoder_segment_ids"][row, here] = segments
        features["encoder_target_tokens"][row, here] = example["targets"]
        features["encoder_loss_weights"][row, here] = example.get("target_weights", 1)
        if self.has_types:
            features["encoder_token_types"][row, here] = example.get("token_types", 0)
        if self.has_pairs:
            features["encoder_pair_labels"][row, here] = example.get("pair_labels", 0)


# The name in an example of the number of its task, counted from 1.
TASK_ID = "task_id"
_NO_TASK = np.zeros(1, np.int32)


@dataclasses.dataclass(frozen=True)
class TaskLayout:
    """Another layout, and the number of the task of each target, counted from 1."""

    layout: Layout

    @property
    def lengths(self) -> dict[str, int]:
        lengths = self.layout.lengths
        side = writing_side(lengths)
        return {**lengths, f"{side}_task_ids": lengths[f"{side}_target_tokens"]}

    @property
    def capacity(self) -> tuple[int, ...]:
        return self.layout.capacity

    def sizes(self, example: Example) -> tuple[int, ...]:
        return self.layout.sizes(example)

    def write(
        self, features: Features, row: int, start: tuple[int, ...], segment: int, example: Example
    ) -> None:
        self.layout.write(features, row, start, segment, example)
        side = writing_side(features)
        is_own = features[f"{side}_segment_ids"][row] == segment
        # Evaluation scores one task at a time, and reads none.
        features[f"{side}_task_ids"][row, is_own] = example.get(TASK_ID, _NO_TASK)[0]


@dataclasses.dataclass(frozen=True)
class PromptedLayout:
    """Another layout with the tokens of a prompt before those that each example has in the first
    feature. They have no targets; their ids are 0, as the model has vectors of its own for them.

    >>> layout = PromptedLayout(EncoderDecoderLayout(8, 5), 2)
    >>> pair = {"inputs": np.array([5, 1]), "targets": np.array([7, 1])}
    >>> batch = batch_of(layout, [[pair, pair]])
    >>> for name in ("encoder_input_tokens", "encoder_segment_ids", "decoder_segment_ids"):
    ...     print(batch[name][0])
    [0 0 5 1 0 0 5 1 0 0]
    [1 1 1 1 2 2 2 2 0 0]
    [1 1 2 2 0]
    """

    layout: Layout
    prompt_length: int

    @property
    def lengths(self) -> dict[str, int]:
        more = self.prompt_length
        lengths = self.layout.lengths
        return {n: k + more * n.startswith(self._stack) for n, k in lengths.items()}

    @property
    def capacity(self) -> tuple[int, ...]:
        first, *rest = self.layout.capacity
        return first + self.prompt_length, *rest

    def sizes(self, example: Example) -> tuple[int, ...]:
        first, *rest = self.layout.sizes(example)
        return first + self.prompt_length, *rest

    def write(
        self, features: Features, row: int, start: tuple[int, ...], segment: int, example: Example
    ) -> None:
        at = slice(start[0], start[0] + self.prompt_length)
        self.layout.write(features, row, (at.stop, *start[1:]), segment, example)
        features[f"{self._stack}_segment_ids"][row, at] = segment
        if "decoder_causal_attention" in features and len(example["inputs"]):
            features["decoder_causal_attention"][row, at] = 1

    @property
    def _stack(self) -> str:
        return "encoder" if "encoder_input_tokens" in self.layout.lengths else "decoder"


def with_prompt(layout: Layout, prompt_length: int) -> Layout:
    """Returns a layout with so many tokens of a prompt before those of each example."""
    return PromptedLayout(layout, prompt_length) if prompt_length else layout


_DECODER = (
    "decoder_input_tokens",
    "decoder_segment_ids",
    "decoder_target_tokens",
    "decoder_loss_weights",
)


def make_layout(
    kind: str,
    *,
    inputs_length: int,
    targets_length: int,
    total_length: int,
    has_inputs: bool,
    start_token: int = START_TOKEN,
    has_types: bool = False,
    has_pairs: bool = False,
    has_queries: bool = False,
) -> Layout:
    """Returns the layout of a model whose `layout` is `kind`.

    Args:
        inputs_length, targets_length, total_length: of the longest inputs, targets and both.
        has_inputs: whether examples have inputs.
        start_token: precedes the first target.
        has_types: whether an encoder alone reads the types of tokens.
        has_pairs: whether it decides if the second part of the inputs follows the first.
        has_queries: whether it ranks the candidates of queries.
    """
    check_choice("the layout of the model", kind, LAYOUTS)
    if kind == "encoder":
        return EncoderLayout(inputs_length, has_types, has_pairs, has_queries)
    if kind == "decoder":
        return DecoderLayout(total_length, has_inputs, start_token)
    return EncoderDecoderLayout(inputs_length, targets_length, start_token)


# The values of a model's `layout`.
LAYOUTS = ("encoder_decoder", "decoder", "encoder")


def _write_decoder(
    features: Features,
    row: int,
    at: int,
    segment: int,
    example: Example,
    targets: Tokens,
    start_token: int,
) -> None:
    """Writes targets and decoder inputs: the start token, and the targets one position later."""
    if not len(targets):
        return
    here = slice(at, at + len(targets))
    features["decoder_target_tokens"][row, here] = targets
    features["decoder_segment_ids"][row, here] = segment
    features["decoder_loss_weights"][row, here] = 1
    if "target_weights" in example:
        weights = example["target_weights"]
        features["decoder_loss_weights"][row, here.stop - len(weights) : here.stop] = weights
    if "decoder_inputs" in example:
        features["decoder_input_tokens"][row, here] = example["decoder_inputs"]
    else:
        features["decoder_input_tokens"][row, at] = start_token
        features["decoder_input_tokens"][row, at + 1 : at + len(targets)] = targets[:-1]


def batch_of(layout: Layout, rows: Sequence[Sequence[Example]]) -> Features:
    """Returns the batch of these rows of examples; a row without examples is all padding.

    >>> pair = {"inputs": np.array([5, 6, 1]), "targets": np.array([7, 1])}
    >>> batch = batch_of(EncoderDecoderLayout(8, 5), [[pair, pair]])
    >>> for name in ("encoder_input_tokens", "encoder_segment_ids"):
    ...     print(batch[name][0])
    [5 6 1 5 6 1 0 0]
    [1 1 1 2 2 2 0 0]
    >>> for name in ("decoder_input_tokens", "decoder_target_tokens"):
    ...     print(batch[name][0])
    [0 7 0 7 0]
    [7 1 7 1 0]
    """
    # Padding is 0 in every feature: np.zeros is cheaper than np.full.
    features = {
        name: np.zeros((len(rows), length), np.int32) for name, length in layout.lengths.items()
    }
    for row, examples in enumerate(rows):
        start = (0,) * len(layout.capacity)
        for segment, example in enumerate(examples, start=1):
            layout.write(features, row, start, segment, example)
            start = tuple(map(operator.add, start, layout.sizes(example)))
        assert all(a <= b for a, b in zip(start, layout.capacity, strict=True)), start
    return features
