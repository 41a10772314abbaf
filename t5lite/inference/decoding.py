"""How targets are written: the choices, and what greedy, sampled and beam search have in common."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.errors import UserError
from t5lite.core.numbers import Number, check_number, numeric, static
from t5lite.models.architectures import Batch, DecoderOnly, EncoderDecoder
from t5lite.models.cache import Cache, with_room, written
from t5lite.models.stack import unstacked

Writer = EncoderDecoder | DecoderOnly

# Tokens of each way for which a cache has room at first. Every step looks at all of the cache, so
# it grows only when it is full, to twice as much; each size is a loop of its own to compile.
ROOM = 32


@numeric
class Decoding:
    """How targets are written. Numbers may be arrays with one for each row.

    Args:
        num_beams: sequences that beam search keeps; 1 for none.
        num_beam_groups: beams in so many groups of the same size, each searched in turn; of a
            token that groups before have just taken, `diversity_penalty` is subtracted for every
            beam that took it.
        diversity_penalty: in nats.
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
        for name, rule, holds in (
            ("num_beams", "at least 1", lambda n: n >= 1),
            ("num_beam_groups", "at least 1", lambda n: n >= 1),
            ("diversity_penalty", "at least 0", lambda p: p >= 0),
            ("num_samples", "at least 1", lambda n: n >= 1),
            ("length_penalty", "at least 0", lambda a: a >= 0),
            ("temperature", "over 0", lambda t: t > 0),
            ("top_k", "at least 0", lambda k: k >= 0),
            ("top_p", "in (0, 1]", lambda p: 0 < p <= 1),
            ("min_length", "at least 0", lambda n: n >= 0),
            ("max_length", "at least 1", lambda n: n >= 1),
        ):
            check_number(f"Decoding.{name}", getattr(self, name), rule, holds)
        # Part of the program, so of a kind that has a hash.
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        if self.num_beams % self.num_beam_groups:
            raise UserError(
                f"Decoding.num_beams must be divisible by Decoding.num_beam_groups "
                f"({self.num_beam_groups}), got {self.num_beams}"
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


class Written(NamedTuple):
    """What was written for each row, the best first.

    `tokens` end with the token that stopped them, and with padding (0) behind it;
    `log_probabilities` are the sums over them in nats, under the model as it is; `scores` are what
    they are ranked by.
    """

    tokens: Int[Array, "b n l"]
    log_probabilities: Float[Array, "b n"]
    scores: Float[Array, "b n"]


class Ways(NamedTuple):
    """Several ways to go on in each row, which share what they have in common in one cache.

    Behind the prompt, each step puts a token of every way into the cache: no way ever moves there,
    and whoever goes on from another looks where that one has looked.

    Args:
        params: of the model, its decoder's layers taken apart.
        may_see: which tokens of the cache each way has behind it.
        place: where the next token stands in the target.
    """

    params: Any
    may_see: Bool[Array, "b ways capacity"]
    place: Int[Array, ""]
    cache: Cache


def read_prompt(
    model: Writer, params: Any, batch: Batch, *, ways: int, length: int
) -> tuple[Float[Array, "b ways v"], Ways]:
    """Reads all that is given, at once, and returns the first token's logits and what follows.

    Args:
        batch: what the model takes. `decoder_input_tokens`, if there are any, are read before
            anything is written; their last place is each row's last token, whatever is before its
            first has segment 0. Without any, an encoder-decoder begins with 0.
        ways: in which each row goes on.
        length: tokens at most that will follow in each way.
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
    logits: Any
    logits, cache = model.apply(variables, batch, cache, method="extend")
    room = _rooms(length)[0] * ways
    cache = with_room(cache, room)
    capacity = given + room
    # Or XLA makes each layer's parameters, and what was encoded, anew in every step.
    params, cache = jax.lax.optimization_barrier((params, cache))
    seen = jnp.broadcast_to((cache.segment_ids > 0)[:, None], (logits.shape[0], ways, capacity))
    logits = jnp.broadcast_to(logits[:, -1:], (logits.shape[0], ways, logits.shape[2]))
    return logits, Ways(params, seen, jnp.asarray(given, jnp.int32), cache)


def read_on(
    model: Writer, tokens: Int[Array, "b ways"], before: Ways
) -> tuple[Float[Array, "b ways v"], Ways]:
    """Reads one more token of each way."""
    count = tokens.shape[1]
    new = jnp.eye(count, dtype=bool)[None]
    new = jnp.broadcast_to(new, (tokens.shape[0], count, count))
    may_see = written(before.may_see, new, before.cache.length, axis=2)
    read: Any = model.apply(
        {"params": before.params},
        *(tokens, may_see, before.place, before.cache),
        method="extend_by_one",
    )
    return read[0], Ways(before.params, may_see, before.place + 1, read[1])


def read_while(
    go_on: Callable[[Any], Array], step: Callable[[Any], Any], carry: tuple[Any, Ways], length: int
) -> Any:
    """Returns the carry after all steps, `jax.lax.while_loop` with a cache that grows.

    Args:
        go_on: as there. The carry begins with a tuple of which the first is the tokens so far.
        length: tokens at most.
    """
    told, ways = carry
    before, *_ = rooms = _rooms(length)
    for room in rooms:
        more = (room - before) * ways.may_see.shape[1]
        may_see = jnp.pad(ways.may_see, ((0, 0), (0, 0), (0, more)))
        ways = ways._replace(may_see=may_see, cache=with_room(ways.cache, more))

        def fits(carry: Any, room: int = room) -> Array:
            return (carry[0][0] < room) & go_on(carry)

        told, ways = jax.lax.while_loop(fits, step, (told, ways))
        before = room
    return told


def _rooms(length: int) -> list[int]:
    """Returns for how many tokens of each way a cache has room, one size after the other."""
    rooms = [min(length, ROOM)]
    while rooms[-1] < length:
        rooms.append(min(2 * rooms[-1], length))
    return rooms


def going_on_from(before: Ways, origins: Int[Array, "b ways"]) -> Ways:
    """Returns the ways of which way i goes on from way origins[i] of the same row."""
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
