"""How targets are written: the choices, and what greedy, sampled and beam search have in common."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.errors import UserError
from t5lite.core.numbers import Number, check_number, numeric, static
from t5lite.models.architectures import Batch, DecoderOnly, EncoderDecoder
from t5lite.models.cache import Cache, grown, written
from t5lite.models.stack import unstacked

GenerativeModel = EncoderDecoder | DecoderOnly

# Tokens of each hypothesis that a cache first has room for. Every step attends to all of the cache,
# so it grows only when it is full, to twice as much; each capacity is a loop of its own to compile.
FIRST_CAPACITY = 32

# Choices that count something, and the least that each may be.
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
    """How targets are written. Numbers may be arrays with one for each row.

    Args:
        num_beams: sequences that beam search keeps; 1 for none.
        num_beam_groups: beams in so many groups of the same size, each searched in turn; of a
            token that groups before have just taken, `diversity_penalty` is subtracted for every
            beam that took it.
        diversity_penalty: in nats; over 0 where there are several groups, or all would be alike.
        length_penalty: beams are ranked by the sum of log-probabilities over
            ((5 + tokens) / 6) ** length_penalty; 0 ranks by the sum alone.
        temperature: None takes the likeliest token each time; else logits are divided by it, and
            tokens are sampled.
        top_k: samples among so many likeliest tokens; 0 for all.
        top_p: samples among the fewest likeliest tokens whose probabilities add up to it.
        num_samples: sampled targets of each input.
        min_length: tokens before which no target ends.
        max_length: tokens at most; None for as many as there is room for.
        stop_ids: tokens that end a target, besides the end of a sequence.

    Source: google-research/t5x@main:t5x/decoding.py for the length penalty and its default;
    Vijayakumar et al., Diverse Beam Search, for groups.
    """

    num_beams: int = static(default=1)
    num_beam_groups: int = static(default=1)
    diversity_penalty: Number = 0.0
    length_penalty: Number = 0.6
    temperature: Number | None = None
    top_k: Number = 0
    top_p: Number = 1.0
    num_samples: int = static(default=1)
    min_length: Number = 0
    max_length: Number | None = None
    stop_ids: Sequence[int] = static(default=())

    def __post_init__(self) -> None:
        for name, least in COUNTS.items():
            owner, value = f"Decoding.{name}", getattr(self, name)
            check_number(owner, value, "a whole number", lambda n: n == int(n))
            check_number(owner, value, f"at least {least}", functools.partial(operator.le, least))
        for name, rule, holds in (
            ("diversity_penalty", "at least 0", lambda p: p >= 0),
            ("length_penalty", "at least 0", lambda a: a >= 0),
            ("temperature", "over 0", lambda t: t > 0),
            ("top_p", "in (0, 1]", lambda p: 0 < p <= 1),
        ):
            check_number(f"Decoding.{name}", getattr(self, name), rule, holds)
        # Part of the program, so of a kind that has a hash.
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        if any(not isinstance(number, int) or number < 0 for number in self.stop_ids):
            raise UserError(f"Decoding.stop_ids must be ids of tokens, got {self.stop_ids}")
        if not _in_order(self.min_length, self.max_length):
            raise UserError(
                f"Decoding.min_length must be at most Decoding.max_length ({self.max_length}), got "
                f"{self.min_length}"
            )
        for name, otherwise in (("top_k", 0), ("top_p", 1.0)):
            value = getattr(self, name)
            if self.temperature is None and isinstance(value, int | float) and value != otherwise:
                raise UserError(f"Decoding.{name} needs Decoding.temperature, got {name}={value}")
        if self.num_beams % self.num_beam_groups:
            raise UserError(
                f"Decoding.num_beams must be divisible by Decoding.num_beam_groups "
                f"({self.num_beam_groups}), got {self.num_beams}"
            )
        penalty = self.diversity_penalty
        if isinstance(penalty, int | float) and (self.num_beam_groups > 1) != (penalty > 0):
            raise UserError(
                "Decoding.num_beam_groups over 1 and a Decoding.diversity_penalty over 0 go "
                f"together, got {self.num_beam_groups} groups and a penalty of {penalty}"
            )
        if self.num_beams > 1 and (self.temperature is not None or self.num_samples > 1):
            raise UserError(
                "Decoding.num_beams over 1 goes with neither Decoding.temperature nor "
                f"Decoding.num_samples, got {self.num_beams} beams"
            )
        if self.num_samples > 1 and self.temperature is None:
            raise UserError(
                f"Decoding.num_samples over 1 needs Decoding.temperature, got {self.num_samples}"
            )

    @property
    def num_targets(self) -> int:
        """Targets that are written for each row."""
        return max(self.num_beams, self.num_samples)


def check_target_lengths(decoding: Mapping[str, Any], most: int, owner: str) -> None:
    """Raises a UserError where numbers of `Decoding` ask for more tokens than there may be.

    Args:
        most: as many as there may be, by what `owner` says.
    """
    for name in ("min_length", "max_length"):
        if (decoding.get(name) or 0) > most:
            raise UserError(
                f"Decoding.{name} must be at most {owner} ({most}), got {decoding[name]}"
            )


def _in_order(least: Any, most: Any) -> bool:
    """Whether numbers that a user wrote, if both are, do not exclude each other."""
    return not (isinstance(least, int | float) and isinstance(most, int | float) and least > most)


class Decoded(NamedTuple):
    """What was written for each row, the best first.

    `tokens` end with the token that stopped them, and with padding (0) behind it;
    `log_probabilities` are the sums over them in nats, under the model as it is; `scores` are what
    they are ranked by.
    """

    tokens: Int[Array, "b n l"]
    log_probabilities: Float[Array, "b n"]
    scores: Float[Array, "b n"]


class Hypotheses(NamedTuple):
    """The hypotheses of each row, which share one cache.

    Behind the prompt, each step appends a token of every hypothesis. The cache is never reordered:
    a hypothesis that continues another attends to the tokens that the other attended to.

    Args:
        params: of the model, its decoder's layers taken apart.
        may_see: which tokens of the cache are each hypothesis's own.
        place: where the next token stands in the target.
    """

    params: Any
    may_see: Bool[Array, "b hypotheses capacity"]
    place: Int[Array, ""]
    cache: Cache


def prefill(
    model: GenerativeModel, params: Any, batch: Batch, *, hypotheses: int, length: int
) -> tuple[Float[Array, "b hypotheses v"], Hypotheses]:
    """Reads all that is given, at once, and returns the first token's logits and what follows.

    Args:
        batch: what the model takes. `decoder_input_tokens`, if there are any, are read before
            anything is written; their last place is each row's last token, whatever is before its
            first has segment 0. Without any, an encoder-decoder begins with 0.
        hypotheses: of each row.
        length: tokens at most that will follow in each of them.
    """
    layers = params["decoder"]["layers"]
    apart = unstacked(layers, model.config.num_decoder_layers)
    params = {**params, "decoder": {**params["decoder"], "layers": apart}}
    if "decoder_input_tokens" not in batch:
        begin = jnp.zeros((batch["encoder_segment_ids"].shape[0], 1), jnp.int32)
        batch = {**batch, "decoder_input_tokens": begin, "decoder_segment_ids": begin + 1}
    given = batch["decoder_input_tokens"].shape[1]
    variables = {"params": params}
    cache: Any = model.apply(variables, batch, capacity=given, method="start")
    x: Any
    x, cache = model.apply(variables, batch, cache, method="extend")
    # Of the last place alone: a whole prompt's would be the largest array of all.
    logits: Any = model.apply(variables, x[:, -1:], method="logits")
    first = _capacities(length)[0] * hypotheses
    cache = grown(cache, first)
    # Or XLA makes each layer's parameters, and what was encoded, anew in every step.
    params, cache = jax.lax.optimization_barrier((params, cache))
    seen = jnp.broadcast_to(
        (cache.segment_ids > 0)[:, None], (logits.shape[0], hypotheses, given + first)
    )
    logits = jnp.broadcast_to(logits, (logits.shape[0], hypotheses, logits.shape[2]))
    return logits, Hypotheses(params, seen, jnp.asarray(given, jnp.int32), cache)


def decode_step(
    model: GenerativeModel, tokens: Int[Array, "b hypotheses"], before: Hypotheses
) -> tuple[Float[Array, "b hypotheses v"], Hypotheses]:
    """Reads one more token of each hypothesis, and returns the logits of the next."""
    count = tokens.shape[1]
    new = jnp.eye(count, dtype=bool)[None]
    new = jnp.broadcast_to(new, (tokens.shape[0], count, count))
    may_see = written(before.may_see, new, before.cache.length, axis=2)
    read: Any = model.apply(
        {"params": before.params},
        *(tokens, may_see, before.place, before.cache),
        method="extend_by_one",
    )
    return read[0], Hypotheses(before.params, may_see, before.place + 1, read[1])


def decode_while(
    go_on: Callable[[Any], Array],
    step: Callable[[Any], Any],
    carry: tuple[Any, Hypotheses],
    length: int,
) -> Any:
    """Returns the carry after all steps, `jax.lax.while_loop` with a cache that grows.

    Args:
        go_on: as there. The carry begins with a tuple of which the first is the tokens so far.
        length: tokens at most.
    """
    told, hypotheses = carry
    before, *_ = capacities = _capacities(length)
    for capacity in capacities:
        more = (capacity - before) * hypotheses.may_see.shape[1]
        may_see = jnp.pad(hypotheses.may_see, ((0, 0), (0, 0), (0, more)))
        hypotheses = hypotheses._replace(may_see=may_see, cache=grown(hypotheses.cache, more))

        def fits(carry: Any, capacity: int = capacity) -> Array:
            return (carry[0][0] < capacity) & go_on(carry)

        told, hypotheses = jax.lax.while_loop(fits, step, (told, hypotheses))
        before = capacity
    return told


def _capacities(length: int) -> list[int]:
    """Returns how many tokens of each hypothesis a cache has room for, as it grows."""
    capacities = [min(length, FIRST_CAPACITY)]
    while capacities[-1] < length:
        capacities.append(min(2 * capacities[-1], length))
    return capacities


def reordered(before: Hypotheses, origins: Int[Array, "b hypotheses"]) -> Hypotheses:
    """Returns hypotheses of which the i-th continues the origins[i]-th of the same row."""
    may_see = jnp.take_along_axis(before.may_see, origins[..., None], axis=1)
    return before._replace(may_see=may_see)


def each_row(number: Any, rows: int) -> Float[Array, "b 1"]:
    """Returns a number of `Decoding` as one for each row."""
    return jnp.broadcast_to(jnp.asarray(number, jnp.float32), (rows,))[:, None]


def longest(decoding: Decoding, rows: int, length: int) -> Float[Array, "b 1"]:
    """Returns how many tokens each row's targets may have, `length` at most."""
    most = length if decoding.max_length is None else decoding.max_length
    return jnp.minimum(each_row(most, rows), length)


def is_any_of(tokens: Int[Array, "*shape"], ids: Sequence[int]) -> Bool[Array, "*shape"]:
    """Whether each token is one of `ids`."""
    return jnp.isin(tokens, jnp.asarray(ids, jnp.int32))


def norms_and_allowed(
    logits: Float[Array, "*rows v"], ids: Sequence[int], where: Bool[Array, "*rows"]
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows v"]]:
    """Returns what logits less are log-probabilities, and the logits with `ids` ruled out in the
    rows `where` it is true.
    """
    norms = jax.nn.logsumexp(logits, axis=-1)
    # The logits as they were are read no more, so XLA changes them in place and not in a copy.
    norms, logits = jax.lax.optimization_barrier((norms, logits))
    for number in ids:
        logits = logits.at[..., number].set(jnp.where(where, -jnp.inf, logits[..., number]))
    return norms, logits
