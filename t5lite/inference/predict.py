"""Targets for any number of prompts, batched by length; one program per length bucket."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from t5lite.core.batches import Batch
from t5lite.core.errors import UserError
from t5lite.core.examples import Tokens
from t5lite.core.streams import stream
from t5lite.inference.beam_search import NEVER, beam_search
from t5lite.inference.buckets import batches_by_length, bucket
from t5lite.inference.decoding import Decoded, Decoding
from t5lite.inference.sampling import sample
from t5lite.models.model import GenerativeModel
from t5lite.models.row_adapters import NO_ADAPTER, BindRows
from t5lite.models.token_adapters import prompt_length
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import (
    batch_sharding,
    by_rows,
    local_rows,
    make_global,
    on_host,
    on_mesh,
)

NO_TOKENS = np.zeros(0, np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """What to generate a target for.

    Args:
        inputs: tokens of the encoder, or the first tokens of a decoder-only model.
        prefix: the first tokens of the target.
        number: seeds the samples of this prompt; they depend on nothing else.
        decoding: numbers of `Decoding` for this prompt.
        adapter: its number among several; it has no effect without `bind_rows`.
    """

    inputs: Tokens
    prefix: Tokens = dataclasses.field(default_factory=lambda: NO_TOKENS)
    number: int = 0
    decoding: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    adapter: int = NO_ADAPTER


class Target(NamedTuple):
    """A generated target with its prefix and without the token that ended it.

    `score` is the log-probability, in nats, of the generated tokens, the last one included.
    """

    tokens: Tokens
    score: float


class _RowNumbers(NamedTuple):
    """Numbers of each row: of its prompt, which seeds its samples, and of its adapter."""

    prompt: Any
    adapter: Any


# From parameters and prompts to the targets of each prompt, the best first. The optional third
# argument is called with the number of prompts done so far.
Predict = Callable[..., list[list[Target]]]


def make_predict(
    model: GenerativeModel,
    mesh: DeviceMesh,
    decoding: Decoding,
    *,
    stop_ids: Sequence[int],
    inputs_length: int,
    targets_length: int,
    batch_size: int,
    seed: int = 0,
    first_ids: Sequence[int] = (),
    bind_rows: BindRows | None = None,
) -> Predict:
    """Returns a function that generates targets of at most `targets_length` tokens.

    A prompt has `Decoding.num_targets` targets, or fewer if beam search found fewer hypotheses. If
    none has a finite score, because the parameters are not finite, it has one empty target with the
    score NaN.

    Args:
        inputs_length: maximum number of input tokens.
        batch_size: prompts per batch.
        seed: of sampling.
        first_ids: tokens that every target begins with, before the prompt's prefix.
        bind_rows: gives each row its adapter; None if all rows have the same parameters.

    Raises:
        UserError: if the mesh does not divide the batch, or a stop id is not in the vocabulary.
    """
    whole = model
    # Targets grow token by token, so there is no length to shard.
    mesh = mesh.without("length")
    sharding = batch_sharding(mesh, batch_size, owner="batch_size of decoding")
    to_global = make_global(sharding, batch_size)
    local = local_rows(sharding, batch_size)
    stops = (*stop_ids, *decoding.stop_ids)
    if max(stops) >= model.config.vocab_size:
        raise UserError(
            f"Decoding.stop_ids must be under T5Config.vocab_size ({model.config.vocab_size}), got "
            f"{max(stops)}"
        )
    # Numbers are arrays in the program; these are the values of prompts without their own.
    defaults = {
        field.name: getattr(decoding, field.name)
        for field in dataclasses.fields(decoding)
        if not field.metadata.get("static") and getattr(decoding, field.name) is not None
    }
    defaults.setdefault("max_length", targets_length)

    def generate(params: Any, batch: Batch, decoding: Decoding, row: _RowNumbers) -> Decoded:
        model = whole
        if bind_rows is not None:
            model, params = bind_rows(params, row.adapter)
        if decoding.num_beams > 1:
            return beam_search(
                model, params, batch, decoding, length=targets_length, stop_ids=stops
            )
        root = jax.random.key(seed)
        keys = jax.vmap(lambda number: stream(root, "prompt", number))(row.prompt)
        return sample(
            model, params, batch, decoding, length=targets_length, stop_ids=stops, keys=keys
        )

    jitted = jax.jit(by_rows(generate, mesh), out_shardings=sharding)

    def predict(
        params: Any, prompts: Sequence[Prompt], on_done: Callable[[int], None] = lambda done: None
    ) -> list[list[Target]]:
        if first_ids:
            prompts = [_with_first_ids(first_ids, prompt) for prompt in prompts]
        targets: list[list[Target]] = [[]] * len(prompts)
        done = 0
        sizes = [_sizes(model, prompt, targets_length) for prompt in prompts]
        with on_mesh(mesh):
            for indices in batches_by_length(sizes, batch_size):
                some = [prompts[index] for index in indices]
                batch = _batch_of(model, some, batch_size, inputs_length, targets_length)
                numbers = _numbers_of(some, batch_size, defaults)
                all_rows = batch | numbers
                arrays = to_global({name: array[local] for name, array in all_rows.items()})
                row_numbers: Any = {name: arrays.pop(name) for name in defaults}
                choices = dataclasses.replace(decoding, **row_numbers)
                own = _RowNumbers(arrays.pop("number"), arrays.pop("adapter"))
                decoded = jitted(params, arrays, choices, own)
                tokens, scores = on_host((decoded.tokens, decoded.log_probabilities))
                for row, (index, prompt) in enumerate(zip(indices, some, strict=True)):
                    longest = int(min(numbers["max_length"][row], targets_length))
                    made = _targets_of(tokens[row, :, :longest], scores[row], stops)
                    targets[index] = [
                        target._replace(tokens=np.concatenate([prompt.prefix, target.tokens]))
                        for target in made
                    ]
                done += len(indices)
                on_done(done)
        return targets

    return predict


def _targets_of(
    tokens: Int[np.ndarray, "n l"], scores: Float[np.ndarray, "n"], stops: Sequence[int]
) -> list[Target]:
    """Returns the targets of one prompt, without the empty slots of beam search."""
    targets = [
        Target(_stripped(ids, stops), float(score))
        for ids, score in zip(tokens, scores, strict=True)
        if score > NEVER / 2
    ]
    return targets or [Target(NO_TOKENS, math.nan)]


def _with_first_ids(first_ids: Sequence[int], prompt: Prompt) -> Prompt:
    prefix = np.concatenate([np.array(first_ids, np.int32), prompt.prefix])
    return dataclasses.replace(prompt, prefix=prefix)


def _numbers_of(
    prompts: Sequence[Prompt], rows: int, defaults: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Returns the numbers of each row: `number` and the numbers of `Decoding`."""
    numbers = {name: np.full(rows, value, np.float32) for name, value in defaults.items()}
    numbers["number"] = np.zeros(rows, np.int32)
    numbers["adapter"] = np.full(rows, NO_ADAPTER, np.int32)
    for row, prompt in enumerate(prompts):
        numbers["number"][row] = prompt.number
        numbers["adapter"][row] = prompt.adapter
        for name, value in prompt.decoding.items():
            numbers[name][row] = value
    # A padding row is done after one token.
    numbers["max_length"][len(prompts) :] = 1
    return numbers


def _sizes(model: GenerativeModel, prompt: Prompt, targets_length: int) -> tuple[int, ...]:
    """Returns the key by which prompts are sorted into batches of similar size."""
    prefix = len(prompt.prefix)
    inputs = len(prompt.inputs)
    if model.has_encoder:
        return (bucket(prefix, targets_length) if prefix else 0), inputs
    return (inputs + prefix,)


def _batch_of(
    model: GenerativeModel,
    prompts: Sequence[Prompt],
    rows: int,
    inputs_length: int,
    targets_length: int,
) -> dict[str, np.ndarray]:
    """Returns the batch that `decoding.prefill` takes; rows without a prompt are padding."""
    fixed = model.config.num_experts is not None
    before = prompt_length(model.config.adapters)
    if model.has_encoder:
        width = bucket(max(len(prompt.inputs) for prompt in prompts), inputs_length, fixed=fixed)
        batch = {
            name: np.zeros((rows, before + width), np.int32)
            for name in ("encoder_input_tokens", "encoder_segment_ids")
        }
        for row, prompt in enumerate(prompts):
            end = before + len(prompt.inputs)
            batch["encoder_input_tokens"][row, before:end] = prompt.inputs
            batch["encoder_segment_ids"][row, :end] = 1
        if all(len(prompt.prefix) == 0 for prompt in prompts):
            return batch
        prefixes = [prompt.prefix for prompt in prompts]
        longest = bucket(max(map(len, prefixes)), targets_length, fixed=fixed)
        return {**batch, **_right_aligned(prefixes, rows, 1 + longest, model.config.start_token)}
    sequences = [np.concatenate([prompt.inputs, prompt.prefix]) for prompt in prompts]
    # A prefix is at most as long as a target.
    width = bucket(1 + max(map(len, sequences)), 1 + inputs_length + targets_length, fixed=fixed)
    batch = _right_aligned(sequences, rows, before + width, model.config.start_token, before)
    if model.config.prefix_attention:
        sees_all = np.zeros_like(batch["decoder_segment_ids"])
        for row, prompt in enumerate(prompts):
            first = sees_all.shape[1] - len(sequences[row]) - 1 - before
            # As in training: the inputs and the start token before them.
            count = before + len(prompt.inputs) + 1 if len(prompt.inputs) else 0
            sees_all[row, first : first + count] = 1
        batch["decoder_causal_attention"] = sees_all
    return batch


def _right_aligned(
    sequences: Sequence[Tokens], rows: int, width: int, start_token: int, before: int = 0
) -> dict[str, np.ndarray]:
    """Returns the start token and the sequences, all ending in the last position.

    Args:
        before: tokens of any id before the start token.
    """
    tokens, segments = np.zeros((2, rows, width), np.int32)
    for row, ids in enumerate(sequences):
        tokens[row, width - len(ids) - 1] = start_token
        tokens[row, width - len(ids) :] = ids
        segments[row, width - len(ids) - 1 - before :] = 1
    return {"decoder_input_tokens": tokens, "decoder_segment_ids": segments}


def _stripped(ids: Tokens, stops: Sequence[int]) -> Tokens:
    """Returns the tokens before the first stop id."""
    ends = np.flatnonzero(np.isin(ids, stops))
    return ids[: ends[0]] if len(ends) else ids
