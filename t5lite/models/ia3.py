"""(IA)3: trained factors of the outputs, or of the inputs, of linear maps."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxtyping import Array, Float

from t5lite.core.errors import UserError
from t5lite.core.fields import field_error, field_name
from t5lite.core.patterns import check_patterns, matches
from t5lite.models.adapters import (
    AddedProducts,
    MapFunction,
    MapSite,
    MapWeights,
    broadcast_to_axes,
)
from t5lite.models.initializers import ConstantInit


@dataclasses.dataclass(frozen=True, kw_only=True)
class IA3:
    """Multiplies every output of some linear maps, and every input of others, by a factor.

    Parameter of a map: ia3_scale [*outputs] or [*inputs], ones.

    Args:
        targets: regular expressions; the outputs of the maps whose whole name one of them matches
            are scaled, biases included. By default keys and values of all attention.
        input_targets: the same for maps whose inputs are scaled; by default the last map of
            feed-forward layers, whose inputs are the hidden activations.

    Raises:
        UserError: if a field holds no regular expressions, or both are empty.

    Source: Liu et al. 2022, section 3.3.
    """

    targets: Sequence[str] = (".*attention/(key|value)",)
    input_targets: Sequence[str] = (".*mlp/wo",)

    def __post_init__(self) -> None:
        if not self.targets and not self.input_targets:
            raise field_error(self, "targets", "patterns if input_targets is empty")
        for name in ("targets", "input_targets"):
            if patterns := getattr(self, name):
                check_patterns(field_name(self, name), patterns)
            object.__setattr__(self, name, tuple(patterns))

    def attaches_to(self, name: str) -> bool:
        """Whether it scales the outputs or the inputs of the map of this full name."""
        return matches(name, (*self.targets, *self.input_targets))

    def wrap(self, site: MapSite, apply: MapFunction) -> MapFunction:
        """Returns the map with factors."""
        letters = site.letters
        if self.scales_inputs(site.name):
            axes = letters.stacked + letters.inputs
            sizes = (*site.stacked, *site.inputs)
        else:
            axes = letters.stacked + letters.outputs
            sizes = (*site.stacked, *site.outputs)
        factors = site.parameter("ia3_scale", ConstantInit(1.0), *sizes)

        def adapted(x: Float[Array, "..."]) -> Float[Array, "..."]:
            own = factors.astype(x.dtype)
            if self.scales_inputs(site.name):
                return apply(x * broadcast_to_axes(own, axes, letters.x))
            return apply(x) * broadcast_to_axes(own, axes, letters.result)

        return adapted

    def merged(
        self, site: MapSite, weights: MapWeights, added: Mapping[str, Float[Array, "..."]]
    ) -> MapWeights:
        """Returns the kernel and the bias of the map with factors."""
        letters = site.letters
        factors = added["ia3_scale"]
        kernel_letters = letters.stacked + letters.inputs + letters.outputs
        if self.scales_inputs(site.name):
            wide = broadcast_to_axes(factors, letters.stacked + letters.inputs, kernel_letters)
            return MapWeights(weights.kernel * wide, weights.bias)
        wide = broadcast_to_axes(factors, letters.stacked + letters.outputs, kernel_letters)
        bias = None if weights.bias is None else weights.bias * factors
        return MapWeights(weights.kernel * wide, bias)

    def products(self, site: MapSite) -> list[AddedProducts]:
        """Returns the factors, which are no products of matrices."""
        reads = "scaled_input" if self.scales_inputs(site.name) else "result"
        return [AddedProducts(reads, (("ia3_scale", 0),))]

    def scales_inputs(self, name: str) -> bool:
        """Whether it scales the inputs of the map of this full name.

        Raises:
            UserError: if it would scale its outputs too.
        """
        is_input = matches(name, self.input_targets)
        if is_input and matches(name, self.targets):
            raise UserError(
                f"{field_name(self, 'targets')} and {field_name(self, 'input_targets')} are "
                f"mutually exclusive, got both for {name}"
            )
        return is_input
