"""Log-likelihoods of given targets."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from t5lite.core.batches import Batch
from t5lite.core.examples import Example
from t5lite.core.numbers import as_inputs
from t5lite.data.batching.features import (
    DecoderLayout,
    EncoderDecoderLayout,
    Layout,
    batch_of,
    with_prompt,
)
from t5lite.inference.buckets import batches_by_length, bucket
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.architectures import ModelApply
from t5lite.models.model import GenerativeModel
from t5lite.models.row_adapters import NO_ADAPTER, BindRows
from t5lite.models.token_adapters import prompt_length
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import batch_sharding, local_rows, make_global, on_mesh


class Likelihood(NamedTuple):
    """The log-probability `score`, in nats, of a target and its number of tokens."""

    score: float
    target_tokens: int


# From parameters and examples to the likelihood of each example's targets. The optional third
# argument is called with the number of examples done so far; the fourth has the number of the
# adapter of each example.
Score = Callable[..., list[Likelihood]]


def make_score(
    model: GenerativeModel,
    mesh: DeviceMesh,
    *,
    inputs_length: int,
    targets_length: int,
    batch_size: int,
    bind_rows: BindRows | None = None,
) -> Score:
    """Returns a function that scores the targets of examples given their inputs.

    Args:
        inputs_length, targets_length: maximum numbers of tokens.
        batch_size: examples per batch.
        bind_rows: gives each row its adapter; None if all rows have the same parameters.

    Raises:
        UserError: if the mesh does not divide the batch.
    """
    mesh = mesh.without("length")
    sharding = batch_sharding(mesh, batch_size, owner="batch_size of scoring")
    to_global = make_global(sharding, batch_size)
    local = local_rows(sharding, batch_size)

    @functools.partial(jax.jit, out_shardings=jax.NamedSharding(mesh.devices, jax.P()))
    def sums_of(params: Any, loss: CrossEntropy, batch: Batch, adapters: Any) -> Any:
        of_rows = model
        if bind_rows is not None:
            of_rows, params = bind_rows(params, adapters)
        sums = loss(ModelApply(of_rows), params, batch, by_row=True)
        return sums["cross_entropy"], sums["tokens"]

    def score(
        params: Any,
        examples: Sequence[Example],
        on_done: Callable[[int], None] = lambda done: None,
        adapters: Sequence[int] | None = None,
    ) -> list[Likelihood]:
        found = [Likelihood(0.0, 0)] * len(examples)
        done = 0
        sizes = [(len(example["targets"]), len(example["inputs"])) for example in examples]
        # Rows of an encoder-decoder have two lengths; those of a decoder-only model have their sum.
        keys = [
            (bucket(targets, targets_length), inputs) if model.has_encoder else (targets + inputs,)
            for targets, inputs in sizes
        ]
        with on_mesh(mesh):
            for indices in batches_by_length(keys, batch_size):
                rows = [[examples[index]] for index in indices]
                rows += [[]] * (batch_size - len(rows))
                some = [sizes[index] for index in indices]
                layout = _layout_of(model, some, inputs_length, targets_length)
                batch = batch_of(layout, [rows[row] for row in local])
                chosen = np.full(batch_size, NO_ADAPTER, np.int32)
                if adapters is not None:
                    chosen[: len(indices)] = [adapters[index] for index in indices]
                arrays = to_global({**batch, "adapter": chosen[local]})
                of_rows = arrays.pop("adapter")
                cross_entropy, tokens = jax.device_get(
                    sums_of(params, as_inputs(CrossEntropy()), arrays, of_rows)
                )
                for row, index in enumerate(indices):
                    found[index] = Likelihood(-float(cross_entropy[row]), int(tokens[row]))
                done += len(indices)
                on_done(done)
        return found

    return score


def _layout_of(
    model: GenerativeModel,
    sizes: Sequence[tuple[int, int]],
    inputs_length: int,
    targets_length: int,
) -> Layout:
    """Returns a layout that fits the targets and inputs of some examples."""
    fixed = model.config.num_experts is not None
    prompt = prompt_length(model.config.adapters)
    if model.has_encoder:
        targets, inputs = np.max(sizes, axis=0).tolist()
        both = EncoderDecoderLayout(
            bucket(inputs, inputs_length, fixed=fixed),
            bucket(targets, targets_length, fixed=fixed),
            model.config.start_token,
        )
        return with_prompt(both, prompt)
    longest = inputs_length + targets_length
    one = DecoderLayout(
        bucket(max(map(sum, sizes)), longest, fixed=fixed),
        has_inputs=True,
        start_token=model.config.start_token,
    )
    return with_prompt(one, prompt)
