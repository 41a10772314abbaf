"""LoRA: low-rank updates of linear maps, also with a magnitude of each output (DoRA)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.core.errors import UserError
from t5lite.core.fields import (
    check_counts,
    check_field_choice,
    check_fields,
    field_error,
    field_name,
)
from t5lite.core.patterns import check_patterns, matches
from t5lite.models.adapters import (
    AddedProducts,
    Axis,
    MapFunction,
    MapSite,
    MapWeights,
    broadcast_to_axes,
)
from t5lite.models.initializers import ComputedInit, ConstantInit, Initializer, ScaledInit
from t5lite.models.linear import linear

# Of the axis that LoRA adds; no einsum string of the models uses it.
RANK_LETTER = "r"

# How the two factors start.
ZERO_UPDATE = "zero_update"
PISSA = "pissa"
INITIALIZATIONS = (ZERO_UPDATE, PISSA)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Adds scale * up(down(x)) to linear maps, whose kernels stay as they are.

    Parameters of a map, beside its kernel [*inputs, *outputs]: lora_down [*inputs, adapter],
    lora_up [adapter, *outputs]. With `decomposed` also lora_magnitude [*outputs], the norms of the
    kernel over its inputs. With `initialization` "pissa" also lora_initial_down and
    lora_initial_up, the first values of the two, which must not train.

    Args:
        targets: regular expressions; the maps whose whole name one of them matches are adapted. By
            default queries and values of all attention, as in the paper.
        rank: width between the two factors.
        alpha: the update is scaled by alpha / rank.
        rank_stabilized: whether it is scaled by alpha / sqrt(rank) instead (rsLoRA).
        decomposed: whether a trained magnitude of each output replaces the norm of kernel plus
            update (DoRA). The norm has no gradient.
        initialization: "zero_update" starts `up` at 0. "pissa" starts both from the largest
            singular values and vectors of the kernel, or of the checkpoint's that a run starts
            from; their first product is subtracted, so that the model starts unchanged.
        dropout_rate: of the input of `down` in training, in [0, 1); a constant of the program.

    Raises:
        UserError: if a field is out of range.

    Source: Hu et al. 2022; rsLoRA: Kalajdzievski 2023; DoRA: Liu et al. 2024, section 4; PiSSA:
        Meng et al. 2024; scales and first values of huggingface/peft@v0.21.0.
    Differs: peft's PiSSA stores the residual as the base. Here the base stays intact. peft's DoRA
        with dropout also drops inputs of the kernel.
    """

    targets: Sequence[str] = (".*attention/(query|value)",)
    rank: int = 8
    alpha: float = 16.0
    rank_stabilized: bool = False
    decomposed: bool = False
    initialization: str = ZERO_UPDATE
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        check_patterns(field_name(self, "targets"), self.targets)
        object.__setattr__(self, "targets", tuple(self.targets))
        check_counts(self, "rank")
        check_fields(self, ("alpha",), "over 0", lambda alpha: alpha > 0)
        check_fields(self, ("dropout_rate",), "in [0, 1)", lambda rate: 0 <= rate < 1)
        check_field_choice(self, "initialization", INITIALIZATIONS)

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def attaches_to(self, name: str) -> bool:
        """Whether it adapts the map of this full name."""
        return matches(name, self.targets)

    def from_kernel(
        self, site: MapSite, kernel: Float[Array, "..."]
    ) -> Mapping[str, Float[Array, "..."]]:
        """Returns the first values that depend on the kernel."""
        values: dict[str, Any] = {}
        if self.initialization == PISSA:
            down, up = _principal(site, kernel, self.rank, self.scale)
            values |= {"lora_down": down, "lora_up": up}
            values |= {"lora_initial_down": down, "lora_initial_up": up}
        if self.decomposed:
            values["lora_magnitude"] = _norms(site, kernel)
        return values

    def wrap(self, site: MapSite, apply: MapFunction) -> MapFunction:
        """Returns the map with the update."""
        self._check_site(site)
        added = self._parameters(site)
        to_rank, from_rank = site.through(RANK_LETTER)

        def update(x: Float[Array, "..."], prefix: str = "lora") -> Float[Array, "..."]:
            hidden = linear(to_rank, x, added[f"{prefix}_down"])
            return linear(from_rank, hidden, added[f"{prefix}_up"])

        def adapted(x: Float[Array, "..."]) -> Float[Array, "..."]:
            base = apply(x)
            dropped = dropped_inputs(site, x, self.dropout_rate)
            change = update(dropped)
            if self.initialization == PISSA:
                change = change - update(dropped, "lora_initial")
            change = self.scale * change
            if not self.decomposed:
                return base + change
            letters = site.letters
            factor = self._factor(site, added).astype(x.dtype)
            factor = broadcast_to_axes(factor, letters.stacked + letters.outputs, letters.result)
            without_bias = base
            if site.bias is not None:
                bias = site.bias.astype(x.dtype)
                without_bias = base - broadcast_to_axes(bias, letters.outputs, letters.result)
            return base + (factor - 1) * without_bias + factor * change

        return adapted

    def merged(
        self, site: MapSite, weights: MapWeights, added: Mapping[str, Float[Array, "..."]]
    ) -> MapWeights:
        """Returns the kernel and the bias of the map with the update."""
        kernel = weights.kernel + self._update(site, added)
        if not self.decomposed:
            return MapWeights(kernel, weights.bias)
        letters = site.letters
        outputs = letters.stacked + letters.outputs
        factor = self._factor(site, added)
        bias = weights.bias
        if bias is not None:
            bias = bias + (factor - 1) * (bias - site.bias)
        wide = broadcast_to_axes(
            factor, outputs, letters.stacked + letters.inputs + letters.outputs
        )
        return MapWeights(kernel * wide, bias)

    def products(self, site: MapSite) -> list[AddedProducts]:
        """Returns the products of the update; PiSSA computes that of the first values too."""
        prefixes = ["lora"] + ["lora_initial"] * (self.initialization == PISSA)
        down = self.rank * site.num_inputs
        up = self.rank * site.num_outputs
        return [
            AddedProducts("input", ((f"{prefix}_down", down), (f"{prefix}_up", up)))
            for prefix in prefixes
        ]

    def _parameters(self, site: MapSite) -> dict[str, Any]:
        """Makes the parameters of a map, or returns their values."""
        rank = Axis("adapter", self.rank)
        num_inputs = len(site.stacked) + len(site.inputs)
        # peft's Kaiming initialisation: uniform in +-1 / sqrt(inputs).
        uniform = ScaledInit(
            1 / 3, "uniform", in_axes=tuple(range(len(site.stacked), num_inputs)), out_axes=(-1,)
        )
        initializers: dict[str, tuple[Initializer, tuple[Axis, ...]]] = {
            "lora_down": (uniform, (*site.stacked, *site.inputs, rank)),
            "lora_up": (ConstantInit(0.0), (*site.stacked, rank, *site.outputs)),
        }
        if self.initialization == PISSA:
            for name in ("down", "up"):
                axes = initializers[f"lora_{name}"][1]
                initializers[f"lora_{name}"] = self._computed(site, f"lora_{name}"), axes
                initial = f"lora_initial_{name}"
                initializers[initial] = self._computed(site, initial), axes
        if self.decomposed:
            magnitude = self._computed(site, "lora_magnitude")
            initializers["lora_magnitude"] = magnitude, (*site.stacked, *site.outputs)
        return {
            name: site.parameter(name, initializer, *axes)
            for name, (initializer, axes) in initializers.items()
        }

    def _computed(self, site: MapSite, name: str) -> ComputedInit:
        return ComputedInit(lambda: self.from_kernel(site, site.kernel)[name], "from the kernel")

    def _update(
        self, site: MapSite, added: Mapping[str, Float[Array, "..."]]
    ) -> Float[Array, "..."]:
        """Returns what is added to the kernel."""
        change = factor_product(site, added["lora_down"], added["lora_up"])
        if self.initialization == PISSA:
            change = change - factor_product(
                site, added["lora_initial_down"], added["lora_initial_up"]
            )
        return self.scale * change

    def _factor(
        self, site: MapSite, added: Mapping[str, Float[Array, "..."]]
    ) -> Float[Array, "..."]:
        """Returns the magnitudes over the norms of kernel plus update, which are constants."""
        changed = site.kernel.astype(jnp.float32) + self._update(site, added)
        return added["lora_magnitude"] / jax.lax.stop_gradient(_norms(site, changed))

    def _check_site(self, site: MapSite) -> None:
        check_dropout(self, site, self.dropout_rate)
        most = min(site.num_inputs, site.num_outputs)
        if self.initialization == PISSA and self.rank > most:
            rule = f"at most {most} with 'pissa', the rank of {site.name}"
            raise field_error(self, "rank", rule)


def check_dropout(adapter: Any, site: MapSite, dropout_rate: float) -> None:
    """Raises a UserError if a map has inputs without dropout, and the adapter would drop some."""
    assert RANK_LETTER not in site.einsum, site.einsum
    if dropout_rate and site.name.endswith("logits_dense"):
        kind = type(adapter).__name__
        raise UserError(
            f"{field_name(adapter, 'targets')} must not match {site.name} with dropout_rate "
            f"{dropout_rate}: logits have no dropout; adapt it by a {kind} of its own"
        )


def dropped_inputs(
    site: MapSite, x: Float[Array, "..."], dropout_rate: float
) -> Float[Array, "..."]:
    """Returns the input of a map with dropout in training, and as it is otherwise."""
    key = site.dropout_key() if dropout_rate else None
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - dropout_rate, x.shape)
    return jnp.where(keep, x / (1.0 - dropout_rate), jnp.zeros((), x.dtype))


def factor_product(
    site: MapSite, down: Float[Array, "..."], up: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns the product of two factors, in the shape of the kernel of their map."""
    letters = site.letters
    stacked = letters.stacked
    down_letters = f"{stacked}{letters.inputs}{RANK_LETTER}"
    up_letters = f"{stacked}{RANK_LETTER}{letters.outputs}"
    return jnp.einsum(
        f"{down_letters},{up_letters}->{stacked}{letters.inputs}{letters.outputs}", down, up
    )


def _norms(site: MapSite, kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the norm over the inputs for each output."""
    first = len(site.stacked)
    axes = tuple(range(first, first + len(site.inputs)))
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=axes))


def _principal(
    site: MapSite, kernel: Float[Array, "..."], rank: int, scale: float
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns factors whose product times `scale` is the best approximation of this rank."""
    stacked = kernel.shape[: len(site.stacked)]
    inputs = tuple(axis.size for axis in site.inputs)
    outputs = tuple(axis.size for axis in site.outputs)
    matrix = kernel.astype(jnp.float32).reshape(*stacked, math.prod(inputs), math.prod(outputs))
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    roots = jnp.sqrt(values[..., :rank] / scale)
    down = left[..., :, :rank] * roots[..., None, :]
    up = roots[..., :, None] * right[..., :rank, :]
    return down.reshape(*stacked, *inputs, rank), up.reshape(*stacked, rank, *outputs)
