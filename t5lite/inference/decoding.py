"""The decoding configuration, and the steps that greedy, sampled and beam decoding share."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.batches import Batch
from t5lite.core.errors import UserError
from t5lite.core.fields import (
    MAX_COUNT,
    check_field_choice,
    check_fields,
    field_error,
    field_name,
)
from t5lite.core.numbers import Number, numeric, static
from t5lite.models.cache import Cache, grown, updated
from t5lite.models.model import GenerativeModel
from t5lite.models.stack import unstacked

# The first capacity of a cache, in tokens per hypothesis. Every step attends to the whole cache, so
# it starts small and doubles when it is full; each capacity compiles its own loop.
FIRST_CAPACITY = 32

LENGTH_NORMALIZATIONS = ("gnmt", "tokens")
EARLY_STOPPING = ("never", "heuristic", "full")

# Fields that rank and end beams; without beam search they must have their default.
OF_BEAMS = ("length_penalty", "length_normalization", "early_stopping")

# Fields that are counts, and the minimum of each.
COUNTS = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_samples": 1,
    "top_k": 0,
    "min_length": 0,
    "max_length": 1,
}


@numeric
class Decoding:
    """How targets are generated. Numbers may be arrays with one value per row.

    Args:
        num_beams: width of beam search; 1 disables it.
        num_beam_groups: divides the beams into groups of equal size that are searched in turn. For
            each beam of an earlier group that has just taken a token, `diversity_penalty` is
            subtracted from that token's score.
        diversity_penalty: in nats; over 0 with several groups, which would be identical otherwise.
        length_penalty: beams are ranked by the sum of log-probabilities divided by the length to
            this power; 0 ranks by the sum.
        length_normalization: the length that is raised to it: "gnmt", (5 + tokens) / 6 as in T5X,
            or "tokens" as in transformers.
        early_stopping: when beam search ends: "never" before no open beam can beat a finished one
            (early_stopping="never" of transformers); "heuristic" if none would at its present
            length (False); "full" also once as many beams are finished as are kept (True).
        temperature: None takes the most likely token of each step; otherwise logits are divided by
            it and tokens are sampled.
        top_k: samples from this many most likely tokens; 0 for all.
        top_p: samples from the fewest most likely tokens whose probabilities sum to it.
        num_samples: sampled targets of each input.
        min_length: tokens before which no target ends.
        max_length: maximum number of tokens; None for the maximum of the task or command.
        stop_ids: token ids that end a target, besides the end of sequence.

    Raises:
        UserError: for a number out of range, fields that exclude or need each other, or a field of
            beam search with one beam.

    Source: google-research/t5x@main:t5x/decoding.py for the length penalty and its default;
    Vijayakumar et al., Diverse Beam Search, for groups.
    """

    num_beams: int = static(default=1)
    num_beam_groups: int = static(default=1)
    diversity_penalty: Number = 0.0
    length_penalty: Number = 0.6
    length_normalization: str = static(default="gnmt")
    early_stopping: str = static(default="never")
    temperature: Number | None = None
    top_k: Number = 0
    top_p: Number = 1.0
    num_samples: int = static(default=1)
    min_length: Number = 0
    max_length: Number | None = None
    stop_ids: Sequence[int] = static(default=())

    def __post_init__(self) -> None:
        check_fields(self, COUNTS, "a whole number", lambda n: n == int(n))
        check_fields(self, COUNTS, f"at most {MAX_COUNT:,}", lambda n: n <= MAX_COUNT)
        for name, minimum in COUNTS.items():
            is_enough = functools.partial(operator.le, minimum)
            check_fields(self, [name], f"at least {minimum}", is_enough)
        for name, rule, holds in (
            ("diversity_penalty", "at least 0", lambda p: p >= 0),
            ("length_penalty", "at least 0", lambda a: a >= 0),
            ("temperature", "over 0", lambda t: t > 0),
            ("top_p", "in (0, 1]", lambda p: 0 < p <= 1),
        ):
            check_fields(self, [name], rule, holds)
        check_field_choice(self, "length_normalization", LENGTH_NORMALIZATIONS)
        check_field_choice(self, "early_stopping", EARLY_STOPPING)
        # A constant of the program must be hashable.
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        if any(not isinstance(number, int) or number < 0 for number in self.stop_ids):
            raise field_error(self, "stop_ids", "token ids")
        if not _in_order(self.min_length, self.max_length):
            most = f"{field_name(self, 'max_length')} ({self.max_length})"
            raise field_error(self, "min_length", f"at most {most}")
        for name, otherwise in (("top_k", 0), ("top_p", 1.0)):
            value = getattr(self, name)
            if self.temperature is None and isinstance(value, int | float) and value != otherwise:
                temperature = field_name(self, "temperature")
                raise UserError(f"{field_name(self, name)} needs {temperature}, got {name}={value}")
        if self.num_beams % self.num_beam_groups:
            groups = f"{field_name(self, 'num_beam_groups')} ({self.num_beam_groups})"
            raise field_error(self, "num_beams", f"divisible by {groups}")
        penalty = self.diversity_penalty
        if isinstance(penalty, int | float) and (self.num_beam_groups > 1) != (penalty > 0):
            groups = field_name(self, "num_beam_groups")
            raise UserError(
                f"{groups} over 1 needs a {field_name(self, 'diversity_penalty')} over 0 and vice "
                f"versa, got {self.num_beam_groups} groups and a penalty of {penalty}"
            )
        self._check_of_beams()
        if self.num_beams > 1 and (self.temperature is not None or self.num_samples > 1):
            raise UserError(
                f"{field_name(self, 'num_beams')} over 1 conflicts with "
                f"{field_name(self, 'temperature')} and {field_name(self, 'num_samples')}, got "
                f"{self.num_beams} beams; use beams or samples"
            )
        if self.num_samples > 1 and self.temperature is None:
            raise UserError(
                f"{field_name(self, 'num_samples')} over 1 needs "
                f"{field_name(self, 'temperature')}, got {self.num_samples}"
            )

    def _check_of_beams(self) -> None:
        """Raises a UserError for a field of beam search that one beam would not read."""
        if self.num_beams > 1:
            return
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_plain = isinstance(value, str | int | float)
            if field.name in OF_BEAMS and is_plain and value != field.default:
                rule = f"{field.default!r} with one beam, which it has no effect on"
                remedy = f"leave it out, or raise {field_name(self, 'num_beams')}"
                raise field_error(self, field.name, rule, remedy)

    @property
    def num_targets(self) -> int:
        """Targets that are generated for each row."""
        return max(self.num_beams, self.num_samples)


def check_target_lengths(decoding: Mapping[str, Any], most: int, owner: str) -> None:
    """Raises a UserError if numbers of `Decoding` exceed the maximum length of targets.

    Args:
        decoding: numbers by name.
        most: the maximum, in tokens.
        owner: the field that sets it.
    """
    for name in ("min_length", "max_length"):
        if (decoding.get(name) or 0) > most:
            raise UserError(
                f"Decoding.{name} must be at most {owner} ({most}), got {decoding[name]}"
            )


def _in_order(least: Any, most: Any) -> bool:
    """Whether least <= most, if both are plain numbers and not arrays."""
    return not (isinstance(least, int | float) and isinstance(most, int | float) and least > most)


class Decoded(NamedTuple):
    """The generated targets of each row, the best first.

    `tokens` include the token that ended a target; padding (0) follows. `log_probabilities` are
    sums over the tokens in nats, under the unmodified model. `scores` are what targets are ranked
    by.
    """

    tokens: Int[Array, "b n l"]
    log_probabilities: Float[Array, "b n"]
    scores: Float[Array, "b n"]


class Hypotheses(NamedTuple):
    """The hypotheses of each row, which share one cache.

    After the prompt, each step appends a token of every hypothesis. The cache is never reordered:
    a hypothesis that continues another attends to the tokens that the other attended to.

    Args:
        params: of the model, with the decoder's layers unstacked.
        may_see: which tokens of the cache belong to each hypothesis.
        position: of the next token in the decoder's sequence.
    """

    params: Any
    may_see: Bool[Array, "b hypotheses capacity"]
    position: Int[Array, ""]
    cache: Cache


def prefill(
    model: GenerativeModel, params: Any, batch: Batch, *, hypotheses: int, length: int
) -> tuple[Float[Array, "b hypotheses v"], Hypotheses]:
    """Reads the whole prompt at once; returns the logits of the first token and the hypotheses.

    Args:
        batch: of the model. `decoder_input_tokens`, if present, are read before anything is
            generated; they are aligned to the right, and positions before a row's first token have
            segment 0. Without them, an encoder-decoder starts with
            `T5Config.start_token`.
        hypotheses: per row.
        length: maximum number of generated tokens.
    """
    layers = params["decoder"]["layers"]
    layers = unstacked(layers, model.config.num_decoder_layers)
    params = {**params, "decoder": {**params["decoder"], "layers": layers}}
    if "decoder_input_tokens" not in batch:
        rows = batch["encoder_segment_ids"].shape[0]
        start = jnp.full((rows, 1), model.config.start_token, jnp.int32)
        ones = jnp.ones_like(start)
        batch = {**batch, "decoder_input_tokens": start, "decoder_segment_ids": ones}
    prompt_length = batch["decoder_input_tokens"].shape[1]
    variables = {"params": params}
    cache: Any = model.apply(variables, batch, capacity=prompt_length, method="start")
    x: Any
    x, cache = model.apply(variables, batch, cache, method="extend")
    # Of the last position only: the logits of a whole prompt would be the largest array.
    logits: Any = model.apply(variables, x[:, -1:], method="logits")
    first = _capacities(length)[0] * hypotheses
    cache = grown(cache, first)
    # Without this, XLA recomputes each layer's parameters and the encoder's output in every step.
    params, cache = jax.lax.optimization_barrier((params, cache))
    seen = jnp.broadcast_to(
        (cache.segment_ids > 0)[:, None], (logits.shape[0], hypotheses, prompt_length + first)
    )
    logits = jnp.broadcast_to(logits, (logits.shape[0], hypotheses, logits.shape[2]))
    return logits, Hypotheses(params, seen, jnp.asarray(prompt_length, jnp.int32), cache)


def decode_step(
    model: GenerativeModel, tokens: Int[Array, "b hypotheses"], before: Hypotheses
) -> tuple[Float[Array, "b hypotheses v"], Hypotheses]:
    """Reads one more token of each hypothesis and returns the logits of the next."""
    count = tokens.shape[1]
    new = jnp.eye(count, dtype=bool)[None]
    new = jnp.broadcast_to(new, (tokens.shape[0], count, count))
    may_see = updated(before.may_see, new, before.cache.length, axis=2)
    read: Any = model.apply(
        {"params": before.params},
        tokens,
        may_see,
        before.position,
        before.cache,
        method="extend_by_one",
    )
    return read[0], Hypotheses(before.params, may_see, before.position + 1, read[1])


def decode_while(
    unfinished: Callable[[Any], Array],
    step: Callable[[Any], Any],
    carry: tuple[Any, Hypotheses],
    length: int,
) -> Any:
    """Returns the final carry of a `jax.lax.while_loop` whose cache grows.

    Args:
        unfinished: whether another step is needed.
        step: from carry to carry.
        carry: the state of the search, a tuple that begins with the number of tokens so far, and
            the hypotheses.
        length: maximum number of generated tokens.
    """
    state, hypotheses = carry
    capacities = _capacities(length)
    before = capacities[0]
    for capacity in capacities:
        more = (capacity - before) * hypotheses.may_see.shape[1]
        may_see = jnp.pad(hypotheses.may_see, ((0, 0), (0, 0), (0, more)))
        hypotheses = hypotheses._replace(may_see=may_see, cache=grown(hypotheses.cache, more))

        def fits(carry: Any, capacity: int = capacity) -> Array:
            return (carry[0][0] < capacity) & unfinished(carry)

        state, hypotheses = jax.lax.while_loop(fits, step, (state, hypotheses))
        before = capacity
    return state


def _capacities(length: int) -> list[int]:
    """Returns the successive capacities of a cache, in tokens per hypothesis."""
    capacities = [min(length, FIRST_CAPACITY)]
    while capacities[-1] < length:
        capacities.append(min(2 * capacities[-1], length))
    return capacities


def reordered(before: Hypotheses, origins: Int[Array, "b hypotheses"]) -> Hypotheses:
    """Returns hypotheses whose i-th continues the origins[i]-th of the same row."""
    may_see = jnp.take_along_axis(before.may_see, origins[..., None], axis=1)
    return before._replace(may_see=may_see)


def each_row(number: Any, rows: int) -> Float[Array, "b 1"]:
    """Returns a number of `Decoding` as one value per row."""
    return jnp.broadcast_to(jnp.asarray(number, jnp.float32), (rows,))[:, None]


def longest(decoding: Decoding, rows: int, length: int) -> Float[Array, "b 1"]:
    """Returns the maximum number of tokens of each row's targets, at most `length`."""
    most = length if decoding.max_length is None else decoding.max_length
    return jnp.minimum(each_row(most, rows), length)


def is_any_of(tokens: Int[Array, "*shape"], ids: Sequence[int]) -> Bool[Array, "*shape"]:
    """Whether each token is one of `ids`."""
    return jnp.isin(tokens, jnp.asarray(ids, jnp.int32))


def norms_and_allowed(
    logits: Float[Array, "*rows v"], ids: Sequence[int], where: Bool[Array, "*rows"]
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows v"]]:
    """Returns the norms that turn logits into log-probabilities, and the logits with `ids` at minus
    infinity in the rows selected by `where`.
    """
    norms = jax.nn.logsumexp(logits, axis=-1)
    # Nothing reads the old logits after this, so XLA updates them in place.
    norms, logits = jax.lax.optimization_barrier((norms, logits))
    for number in ids:
        logits = logits.at[..., number].set(jnp.where(where, -jnp.inf, logits[..., number]))
    return norms, logits
