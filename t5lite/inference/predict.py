"""Targets for any number of prompts: sorted into batches by length, each compiled once a bucket."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Tokens
from t5lite.core.streams import stream
from t5lite.inference.beam_search import beam_search
from t5lite.inference.buckets import batches_by_length, bucket
from t5lite.inference.decoding import Decoded, Decoding, GenerativeModel
from t5lite.inference.sampling import sample
from t5lite.models.architectures import Batch, EncoderDecoder
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
    """What a target is written for.

    Args:
        inputs: what an encoder reads, or a decoder alone before all else.
        prefix: what the target begins with.
        number: on which alone what is sampled for it depends.
        decoding: numbers of `Decoding` that are its own.
    """

    inputs: Tokens
    prefix: Tokens = dataclasses.field(default_factory=lambda: NO_TOKENS)
    number: int = 0
    decoding: Mapping[str, int | float] = dataclasses.field(default_factory=dict)


class Target(NamedTuple):
    """A target as it was written, its prefix included, what stopped it not.

    `score` is the log-probability, in nats, of what was written, the stop included.
    """

    tokens: Tokens
    score: float


# From parameters and prompts to the targets of each, the best first; what may come third is called
# with the number of prompts that are done, as it grows.
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
) -> Predict:
    """Returns a function that writes targets of at most `targets_length` tokens.

    Args:
        inputs_length: tokens of the longest inputs.
        batch_size: prompts worked on at a time.
        seed: of what is sampled.
        first_ids: tokens that every target begins with, before a prompt's own prefix.

    Raises:
        UserError: where the mesh does not divide the batch, or the model lacks a stop.
    """
    # Targets grow token by token, so there is no length to split.
    mesh = mesh.without("length")
    sharding = batch_sharding(mesh, batch_size, owner="batch_size of decoding")
    place, mine = make_global(sharding, batch_size), local_rows(sharding, batch_size)
    stops = (*stop_ids, *decoding.stop_ids)
    if max(stops) >= model.config.vocab_size:
        raise UserError(
            f"Decoding.stop_ids must be under T5Config.vocab_size ({model.config.vocab_size}), got "
            f"{max(stops)}"
        )
    # The numbers that are arrays in the program, as they are where a prompt has none of its own.
    usual = {
        field.name: getattr(decoding, field.name)
        for field in dataclasses.fields(decoding)
        if not field.metadata.get("static") and getattr(decoding, field.name) is not None
    }
    usual.setdefault("max_length", targets_length)

    def write(params: Any, batch: Batch, decoding: Decoding, numbers: Any) -> Decoded:
        if decoding.num_beams > 1:
            return beam_search(
                model, params, batch, decoding, length=targets_length, stop_ids=stops
            )
        root = jax.random.key(seed)
        keys = jax.vmap(lambda number: stream(root, "prompt", number))(numbers)
        return sample(
            *(model, params, batch, decoding), length=targets_length, stop_ids=stops, keys=keys
        )

    jitted = jax.jit(by_rows(write, mesh), out_shardings=sharding)

    def predict(
        params: Any, prompts: Sequence[Prompt], on_done: Callable[[int], None] = lambda done: None
    ) -> list[list[Target]]:
        if first_ids:
            prompts = [_begun_with(first_ids, prompt) for prompt in prompts]
        targets: list[list[Target]] = [[]] * len(prompts)
        done = 0
        sizes = [_sizes(model, prompt, targets_length) for prompt in prompts]
        with on_mesh(mesh):
            for indices in batches_by_length(sizes, batch_size):
                some = [prompts[index] for index in indices]
                batch = _batch_of(model, some, batch_size, inputs_length, targets_length)
                numbers = _numbers_of(some, batch_size, usual)
                given = place({name: array[mine] for name, array in (batch | numbers).items()})
                of_rows: Any = {name: given.pop(name) for name in usual}
                choices = dataclasses.replace(decoding, **of_rows)
                number = given.pop("number")
                made = jitted(params, given, choices, number)
                tokens, scores = on_host((made.tokens, made.log_probabilities))
                for row, (index, prompt) in enumerate(zip(indices, some, strict=True)):
                    longest = int(min(numbers["max_length"][row], targets_length))
                    targets[index] = [
                        Target(
                            np.concatenate([prompt.prefix, _stripped(ids[:longest], stops)]),
                            float(score),
                        )
                        for ids, score in zip(tokens[row], scores[row], strict=True)
                    ]
                done += len(indices)
                on_done(done)
        return targets

    return predict


def _begun_with(first_ids: Sequence[int], prompt: Prompt) -> Prompt:
    prefix = np.concatenate([np.array(first_ids, np.int32), prompt.prefix])
    return dataclasses.replace(prompt, prefix=prefix)


def _numbers_of(
    prompts: Sequence[Prompt], rows: int, usual: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Returns the numbers of each row: `number` and those of `Decoding`."""
    given = {name: np.full(rows, value, np.float32) for name, value in usual.items()}
    given["number"] = np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        given["number"][row] = prompt.number
        for name, value in prompt.decoding.items():
            given[name][row] = value
    # A row of padding is done at once.
    given["max_length"][len(prompts) :] = 1
    return given


def _sizes(model: GenerativeModel, prompt: Prompt, targets_length: int) -> tuple[int, ...]:
    """Returns by what prompts are sorted, so that those that are read together are alike."""
    prefix, inputs = len(prompt.prefix), len(prompt.inputs)
    if isinstance(model, EncoderDecoder):
        return (bucket(prefix, targets_length) if prefix else 0), inputs
    return (inputs + prefix,)


def _batch_of(
    model: GenerativeModel,
    prompts: Sequence[Prompt],
    rows: int,
    inputs_length: int,
    targets_length: int,
) -> dict[str, np.ndarray]:
    """Returns what `decoding.prefill` takes; rows without a prompt are padding."""
    fixed = model.config.num_experts is not None
    if isinstance(model, EncoderDecoder):
        width = bucket(max(len(prompt.inputs) for prompt in prompts), inputs_length, fixed=fixed)
        batch = {
            name: np.zeros((rows, width), np.int32)
            for name in ("encoder_input_tokens", "encoder_segment_ids")
        }
        for row, prompt in enumerate(prompts):
            batch["encoder_input_tokens"][row, : len(prompt.inputs)] = prompt.inputs
            batch["encoder_segment_ids"][row, : len(prompt.inputs)] = 1
        if all(len(prompt.prefix) == 0 for prompt in prompts):
            return batch
        prefixes = [prompt.prefix for prompt in prompts]
        given = bucket(max(map(len, prefixes)), targets_length, fixed=fixed)
        return {**batch, **_to_the_right(prefixes, rows, 1 + given)}
    read = [np.concatenate([prompt.inputs, prompt.prefix]) for prompt in prompts]
    # With a prefix, of a target's length at most.
    width = bucket(1 + max(map(len, read)), 1 + inputs_length + targets_length, fixed=fixed)
    batch = _to_the_right(read, rows, width)
    if model.config.prefix_attention:
        sees_all = np.zeros_like(batch["decoder_segment_ids"])
        for row, prompt in enumerate(prompts):
            first = sees_all.shape[1] - len(read[row]) - 1
            # As in training: the inputs and the place before them.
            count = len(prompt.inputs) + 1 if len(prompt.inputs) else 0
            sees_all[row, first : first + count] = 1
        batch["decoder_causal_attention"] = sees_all
    return batch


def _to_the_right(given: Sequence[Tokens], rows: int, width: int) -> dict[str, np.ndarray]:
    """Tokens behind a 0, all ending in the last place."""
    tokens, segments = np.zeros((2, rows, width), np.int32)
    for row, ids in enumerate(given):
        tokens[row, width - len(ids) :] = ids
        segments[row, width - len(ids) - 1 :] = 1
    return {"decoder_input_tokens": tokens, "decoder_segment_ids": segments}


def _stripped(ids: Tokens, stops: Sequence[int]) -> Tokens:
    """Without what stopped it, and what is behind."""
    ends = np.flatnonzero(np.isin(ids, stops))
    return ids[: ends[0]] if len(ends) else ids
