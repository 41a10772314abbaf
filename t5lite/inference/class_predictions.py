"""Predicted classes of the tokens of examples, for any number of examples, batched by length.

By `Classes.structure` the scores of an example are

    "independent", "chain"    the log-probability of the classes, in nats
    "span"                    the logits of the best span and of no answer, added up over both ends,
                              and the log of the sums over all tokens, as in log-probabilities
    "ranking"                 the score of the candidate
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t5lite.core.batches import Batch, segments_of, targets_of
from t5lite.core.examples import Example, Found
from t5lite.data.batching.features import EncoderLayout, batch_of
from t5lite.inference.buckets import batches_by_length, bucket
from t5lite.losses.answer_span import best_span, span_log_probs
from t5lite.losses.chain import best_path, chain_of, log_partition
from t5lite.losses.loss import Apply
from t5lite.models.architectures import ModelApply
from t5lite.models.classifier import CHAIN, INDEPENDENT, RANKING, SPAN, Classes
from t5lite.models.model import Model
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import batch_sharding, local_rows, make_global, on_mesh

# From parameters and examples to their classes. The optional third argument is called with the
# number of examples done so far.
PredictClasses = Callable[..., list[Found]]
# Numbers at each position, and the scores of each row.
_Decided = tuple[Int[Array, "b l"], Float[Array, "b n"]]
_Decide = Callable[[Apply, Any, Batch], _Decided]


def classes_of(model: Model) -> Classes:
    """Returns the classes of a model that has some."""
    assert model.classes is not None, model
    return model.classes


def make_predict_classes(
    model: Model, mesh: DeviceMesh, *, inputs_length: int, batch_size: int, span_length: int = 0
) -> PredictClasses:
    """Returns a function that predicts the classes of examples where their targets count.

    Args:
        inputs_length: maximum number of tokens.
        span_length: of the longest span, in tokens, if classes are those of spans.
        batch_size: examples per batch.

    Raises:
        UserError: if the mesh does not divide the batch.
    """
    mesh = mesh.without("length")
    sharding = batch_sharding(mesh, batch_size, owner="batch_size of predictions")
    to_global = make_global(sharding, batch_size)
    local = local_rows(sharding, batch_size)
    decide: _Decide
    if classes_of(model).structure == SPAN:
        decide = functools.partial(_span, longest=span_length)
    else:
        decide = _DECISIONS[classes_of(model).structure]
    has_types = model.config.num_token_types > 1
    fixed = model.config.num_experts is not None

    @functools.partial(jax.jit, out_shardings=jax.NamedSharding(mesh.devices, jax.P()))
    def decided(params: Any, batch: Batch) -> Any:
        return decide(ModelApply(model), params, batch)

    def predict(
        params: Any, examples: Sequence[Example], on_done: Callable[[int], None] = lambda done: None
    ) -> list[Found]:
        found = [Found(np.zeros(0, np.int32), ())] * len(examples)
        done = 0
        lengths = [(len(example["inputs"]),) for example in examples]
        with on_mesh(mesh):
            for indices in batches_by_length(lengths, batch_size):
                rows = [[examples[index]] for index in indices]
                rows += [[]] * (batch_size - len(rows))
                longest = max(lengths[index][0] for index in indices)
                layout = EncoderLayout(bucket(longest, inputs_length, fixed=fixed), has_types)
                batch = batch_of(layout, [rows[row] for row in local])
                numbers, scores = jax.device_get(decided(params, to_global(batch)))
                for row, index in enumerate(indices):
                    own = numbers[row, : lengths[index][0]]
                    found[index] = Found(own, tuple(scores[row].tolist()))
                done += len(indices)
                on_done(done)
        return found

    return predict


def predict_parts(
    predict: PredictClasses,
    params: Any,
    parts: Sequence[Sequence[Example]],
    on_done: Callable[[int], None],
) -> list[list[Found]]:
    """Returns what is predicted for the parts of each input.

    Args:
        on_done: called with the number of inputs whose parts amount to what is done so far.
    """
    every = [part for each in parts for part in each]

    def on_parts(done: int) -> None:
        on_done(done * len(parts) // max(len(every), 1))

    found = iter(predict(params, every, on_parts))
    return [[next(found) for _ in each] for each in parts]


def _independent(apply: Apply, params: Any, batch: Batch) -> _Decided:
    """The most likely class of each token."""
    log_probs = jax.nn.log_softmax(apply(params, batch).astype(jnp.float32))
    _, weights = targets_of(batch)
    numbers = jnp.argmax(log_probs, axis=-1) * (weights > 0)
    scores = jnp.sum(jnp.max(log_probs, axis=-1) * (weights > 0), axis=-1)
    return numbers.astype(jnp.int32), scores[:, None]


def _chain(apply: Apply, params: Any, batch: Batch) -> _Decided:
    """The most likely path of classes."""
    logits = apply(params, batch).astype(jnp.float32)
    transitions = apply.head(params, "transitions")
    _, weights = targets_of(batch)
    chain = chain_of(weights > 0, segments_of(batch))
    numbers, score = best_path(logits, transitions, chain)
    return numbers, (score - log_partition(logits, transitions, chain))[:, None]


def _ranking(apply: Apply, params: Any, batch: Batch) -> _Decided:
    """The score of the candidate of each row, at its first token."""
    scores = apply(params, batch).astype(jnp.float32)[:, 0]
    _, weights = targets_of(batch)
    return jnp.zeros_like(weights), scores


def _span(apply: Apply, params: Any, batch: Batch, *, longest: int) -> _Decided:
    """The best span of at most `longest` tokens, which is not that of no answer."""
    _, weights = targets_of(batch)
    logits = apply(params, batch).astype(jnp.float32)
    log_probs = span_log_probs(logits, batch)
    numbers, score = best_span(log_probs, weights > 0, longest=longest)
    # The first token is that of no answer.
    none = jnp.sum(logits[:, 0], axis=-1)
    total = jnp.sum(logits[:, 0] - log_probs[:, 0], axis=-1)
    return numbers, jnp.stack([score + total, none, total], axis=-1)


_DECISIONS: Mapping[str, _Decide] = {
    INDEPENDENT: _independent,
    CHAIN: _chain,
    RANKING: _ranking,
}
