"""How targets are written: the choices, and what greedy, sampled and beam search have in common."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t5lite.core.errors import UserError
from t5lite.core.numbers import Number, check_number, numeric, static
from t5lite.models.architectures import Batch, DecoderOnly, EncoderDecoder
from t5lite.models.cache import Cache

Writer = EncoderDecoder | DecoderOnly


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


def read_prompt(
    model: Writer, params: Any, batch: Batch, *, length: int
) -> tuple[Float[Array, "b v"], Cache]:
    """Reads all that is given, at once, and returns the first token's logits and the cache.

    Args:
        batch: what the model takes. `decoder_input_tokens`, if there are any, are read before
            anything is written; their last place is each row's last token, whatever is before its
            first has segment 0. Without any, an encoder-decoder begins with 0.
        length: tokens for which there is to be room behind those.
    """
    if "decoder_input_tokens" not in batch:
        begin = jnp.zeros((batch["encoder_segment_ids"].shape[0], 1), jnp.int32)
        batch = {**batch, "decoder_input_tokens": begin, "decoder_segment_ids": begin + 1}
    capacity = batch["decoder_input_tokens"].shape[1] + length
    variables = {"params": params}
    cache: Any = model.apply(variables, batch, capacity=capacity, method="start")
    logits: Any
    logits, cache = model.apply(variables, batch, cache, method="extend")
    return logits[:, -1], cache


def read_on(
    model: Writer, params: Any, tokens: Int[Array, "b"], cache: Cache
) -> tuple[Float[Array, "b v"], Cache]:
    """Reads one more token of each row."""
    batch = {
        "decoder_input_tokens": tokens[:, None],
        "decoder_segment_ids": jnp.ones((tokens.shape[0], 1), jnp.int32),
    }
    read: Any = model.apply({"params": params}, batch, cache, method="extend")
    return read[0][:, 0], read[1]


def repeated(cache: Cache, times: int) -> Cache:
    """Returns the cache with each row so many times, one behind the other."""

    def repeat(tree: Any, axis: int) -> Any:
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=axis), tree)

    return Cache(
        length=cache.length,
        segment_ids=repeat(cache.segment_ids, 0),
        own=repeat(cache.own, 1),
        encoded=repeat(cache.encoded, 1),
        encoded_segment_ids=repeat(cache.encoded_segment_ids, 0),
    )


def of_rows(cache: Cache, rows: Int[Array, "b"]) -> Cache:
    """Returns the cache whose row i has read what row rows[i] has, of the same input."""
    own = jax.tree.map(lambda x: jnp.take(x, rows, axis=1), cache.own)
    return dataclasses.replace(
        cache, own=own, segment_ids=jnp.take(cache.segment_ids, rows, axis=0)
    )


def is_any_of(tokens: Int[Array, "*shape"], ids: Sequence[int]) -> Bool[Array, "*shape"]:
    """Whether each token is one of `ids`."""
    return jnp.isin(tokens, jnp.asarray(ids, jnp.int32))


def without(
    logits: Float[Array, "*rows v"], ids: Sequence[int], where: Bool[Array, "*rows"]
) -> Float[Array, "*rows v"]:
    """Returns the logits with `ids` ruled out in the rows `where` it is true."""
    ruled_out = jnp.zeros(logits.shape[-1], bool).at[jnp.asarray(ids, jnp.int32)].set(True)
    ruled_out = jnp.expand_dims(ruled_out, tuple(range(where.ndim)))
    return jnp.where(where[..., None] & ruled_out, -jnp.inf, logits)
