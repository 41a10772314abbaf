"""Losses that compare two passes of the model over one batch: R-Drop and adversarial inputs."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from t5lite.core.batches import Batch, targets_of
from t5lite.core.fields import check_fields
from t5lite.core.numbers import Number, numeric, static
from t5lite.core.streams import stream
from t5lite.losses.chunks import sum_over_chunks
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import Apply, LossSums


def symmetric_divergence(
    first: Float[Array, "b l v"], second: Float[Array, "b l v"]
) -> Float[Array, "b l"]:
    """Returns (KL(p, q) + KL(q, p)) / 2 of two distributions given by logits, in nats.

    >>> first = jnp.log(jnp.array([[[0.5, 0.5]]]))
    >>> second = jnp.log(jnp.array([[[0.75, 0.25]]]))
    >>> round(float(symmetric_divergence(first, second)[0, 0]), 4)
    0.1373
    """
    log_p = jax.nn.log_softmax(first.astype(jnp.float32))
    log_q = jax.nn.log_softmax(second.astype(jnp.float32))
    return 0.5 * jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1)


def _means(cross_entropy: CrossEntropy, sums: Mapping[str, float]) -> dict[str, float]:
    means = cross_entropy.means(sums)
    if "divergence" in sums:
        means["divergence_nats_per_token"] = sums["divergence"] / max(sums["tokens"], 1.0)
    return means


@numeric
class RDrop:
    """Cross-entropy of two passes with different dropout, and the divergence between them.

    Per token (cross-entropy of the first + of the second) / 2 + weight * divergence / 2, where the
    divergence is (KL(p, q) + KL(q, p)) / 2: half of the published loss, so that it is on the scale
    of the cross-entropy. Evaluation has no dropout, so it is the cross-entropy alone.

    Args:
        weight: of the divergence; alpha in the paper.
        cross_entropy: of each pass, with its label smoothing and chunks.

    Raises:
        UserError: if the weight is negative.

    Source: Liang et al., "R-Drop: Regularized Dropout for Neural Networks", equation 4.
    """

    # Without dropout both passes are equal.
    needs_dropout: ClassVar[bool] = True

    weight: Number = 1.0
    cross_entropy: CrossEntropy = CrossEntropy()

    def __post_init__(self) -> None:
        check_fields(self, ("weight",), "at least 0", lambda x: x >= 0)

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums of the cross-entropy, means over both passes, and `divergence`."""
        if key is None:
            return self.cross_entropy(apply, params, batch, by_row=by_row)
        first, first_statistics = apply.hidden(params, batch, key)
        second, second_statistics = apply.hidden(params, batch, stream(key, "second pass"))
        targets, weights = targets_of(batch)

        def sums_of(
            first: Float[Array, "b l e"],
            second: Float[Array, "b l e"],
            targets: Int[Array, "b l"],
            weights: Any,
        ) -> LossSums:
            logits = [apply.logits(params, x) for x in (first, second)]
            of_passes = [
                self.cross_entropy.sums(x, targets, weights, by_row=by_row) for x in logits
            ]
            divergence = symmetric_divergence(*logits) * weights
            mean: LossSums = jax.tree.map(lambda a, b: 0.5 * (a + b), *of_passes)
            return {**mean, "divergence": jnp.sum(divergence, 1 if by_row else None)}

        chunks = self.cross_entropy.chunks
        sums = sum_over_chunks(sums_of, chunks, first, second, targets, weights)
        sums["loss"] = sums["loss"] + 0.5 * self.weight * sums["divergence"]
        statistics = {n: 0.5 * (x + second_statistics[n]) for n, x in first_statistics.items()}
        return self.cross_entropy.with_experts(sums, statistics, weights, by_row=by_row)

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the means of the cross-entropy, and the divergence per target token."""
        return _means(self.cross_entropy, sums)


@numeric
class Adversarial:
    """Cross-entropy, and the divergence under the worst small change of the embedded inputs.

    Each embedded token of all stacks is moved within a ball around it: by noise at first, then by
    `steps` gradient ascents of the divergence between the model's predictions with and without the
    change. Both have the same dropout, so that the change alone makes them differ. The gradients of
    training do not pass through the ascent. Evaluation is the cross-entropy alone.

    All lengths are fractions of the norm of the embedded token.

    Args:
        weight: of the divergence (KL(p, q) + KL(q, p)) / 2 per target token.
        noise: expected norm of the random start.
        step_size: norm of each ascent, before the change is scaled back into the ball.
        radius: of the ball.
        steps: number of ascents; each costs a forward and a backward pass.
        cross_entropy: of the unchanged inputs, with its label smoothing and chunks.

    Raises:
        UserError: if a number is out of range.

    Source: Jiang et al., "SMART", equation 2 and algorithm 1.
    Differs: in norms (L2 of each token, relative to it), in the same dropout for both predictions,
    and without the proximal updates of equation 3.
    """

    weight: Number = 1.0
    noise: Number = 0.01
    step_size: Number = 0.1
    radius: Number = 0.1
    steps: int = static(default=1)
    cross_entropy: CrossEntropy = CrossEntropy()

    def __post_init__(self) -> None:
        check_fields(self, ("weight",), "at least 0", lambda x: x >= 0)
        # At no change the divergence is 0, and so is its gradient.
        check_fields(self, ("noise", "step_size", "radius"), "over 0", lambda x: x > 0)
        check_fields(self, ("steps",), "at least 1", lambda n: n >= 1 and n % 1 == 0)

    def __call__(
        self,
        apply: Apply,
        params: Any,
        batch: Batch,
        key: Key[Array, ""] | None = None,
        *,
        by_row: bool = False,
    ) -> LossSums:
        """Returns the sums of the cross-entropy, and `divergence`."""
        if key is None:
            return self.cross_entropy(apply, params, batch, by_row=by_row)
        hidden, statistics = apply.hidden(params, batch, key)
        targets, weights = targets_of(batch)

        def divergence(
            params: Any, hidden: Float[Array, "b l e"], offsets: Any, *, by_row: bool
        ) -> LossSums:
            moved, _ = apply.hidden(params, {**batch, **offsets}, key)

            def sums_of(x: Float[Array, "b l e"], y: Float[Array, "b l e"], w: Any) -> LossSums:
                logits = [apply.logits(params, each) for each in (x, y)]
                of_tokens = symmetric_divergence(*logits) * w
                return {"divergence": jnp.sum(of_tokens, 1 if by_row else None)}

            return sum_over_chunks(sums_of, self.cross_entropy.chunks, hidden, moved, weights)

        offsets = self._worst_offsets(
            lambda o: divergence(*jax.lax.stop_gradient((params, hidden)), o, by_row=False),
            jax.lax.stop_gradient(apply.embedded(params, batch)),
            stream(key, "adversarial noise"),
        )

        def sums_of(x: Float[Array, "b l e"], targets: Int[Array, "b l"], w: Any) -> LossSums:
            return self.cross_entropy.sums(apply.logits(params, x), targets, w, by_row=by_row)

        sums = sum_over_chunks(sums_of, self.cross_entropy.chunks, hidden, targets, weights)
        sums |= divergence(params, hidden, offsets, by_row=by_row)
        sums["loss"] = sums["loss"] + self.weight * sums["divergence"]
        return self.cross_entropy.with_experts(sums, statistics, weights, by_row=by_row)

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the means of the cross-entropy, and the divergence per target token."""
        return _means(self.cross_entropy, sums)

    def _worst_offsets(self, divergence: Any, embedded: Any, key: Key[Array, ""]) -> Any:
        """Returns the changes of embedded tokens, by the names of `embedded`, after all ascents."""
        embedded = {name: x.astype(jnp.float32) for name, x in embedded.items()}
        norms = {name: _norms(x) for name, x in embedded.items()}
        offsets = {
            name: self._within(
                self.noise
                / jnp.sqrt(x.shape[-1])
                * norms[name]
                * jax.random.normal(stream(key, name), x.shape),
                norms[name],
            )
            for name, x in embedded.items()
        }
        for _ in range(self.steps):
            gradients = jax.grad(lambda o: divergence(o)["divergence"])(offsets)
            offsets = {
                name: self._within(
                    offsets[name] + self.step_size * norms[name] * _direction(gradients[name]),
                    norms[name],
                )
                for name in offsets
            }
        return jax.lax.stop_gradient(offsets)

    def _within(
        self, offsets: Float[Array, "b l e"], norms: Float[Array, "b l 1"]
    ) -> Float[Array, "b l e"]:
        """Scales offsets back into the balls whose radius is a fraction of `norms`."""
        most = self.radius * norms
        return offsets * jnp.minimum(1.0, most / jnp.maximum(_norms(offsets), 1e-30))


def _norms(x: Float[Array, "b l e"]) -> Float[Array, "b l 1"]:
    return jnp.linalg.norm(x, axis=-1, keepdims=True)


def _direction(x: Float[Array, "b l e"]) -> Float[Array, "b l e"]:
    """Returns vectors of norm 1, or 0 where `x` is 0 or so small that its square is."""
    # Scaled first: the squares of small gradients would underflow.
    scaled = x / jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-30)
    return scaled / jnp.maximum(_norms(scaled), 1e-30)
