"""The adapted maps of a model, seen from outside: their parameters, first values and merging."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from t5lite.core.errors import UserError
from t5lite.models.adapters import (
    Adapter,
    KernelAdapter,
    MapFunction,
    MapSite,
    MapWeights,
    MergeableAdapter,
    map_adapters,
)
from t5lite.models.initializers import Parameter
from t5lite.models.model import Model, computed_once, parameters

# Parameters of a map that are its own.
OWN_PARAMETERS = ("kernel", "bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptedMap:
    """A linear map of a model, and the adapters that change it.

    Args:
        site: of one layer, without values.
        adapters: the first innermost.
        stacked_layers: whether its parameters have a first axis "layers".
        own: its kernel and its bias, if it has one, by the last part of their names.
        added: the same of the parameters of its adapters.
    """

    site: MapSite
    adapters: tuple[Adapter, ...]
    stacked_layers: bool
    own: Mapping[str, Parameter]
    added: Mapping[str, Parameter]

    def of_layers(self, function: Callable[..., Any], *values: Any) -> Any:
        """Returns the results of a function of a layer's values for all layers of the stack."""
        if not self.stacked_layers:
            return function(*values)
        return jax.lax.map(lambda layer: function(*layer), values)

    def site_with(self, weights: MapWeights) -> MapSite:
        """Returns the site with the values of one layer."""
        return dataclasses.replace(self.site, kernel=weights.kernel, bias=weights.bias)


@dataclasses.dataclass(frozen=True, eq=False)
class _Recorder:
    """An adapter that changes nothing and keeps the site of every map."""

    sites: dict[str, MapSite] = dataclasses.field(default_factory=dict)

    def attaches_to(self, name: str) -> bool:
        return True

    def wrap(self, site: MapSite, apply: MapFunction) -> MapFunction:
        self.sites[site.name] = dataclasses.replace(
            site, kernel=None, bias=None, parameter=_no_parameter, dropout_key=lambda: None
        )
        return apply


def _no_parameter(*arguments: Any) -> Any:
    raise AssertionError(f"a recorded site makes no parameters, got {arguments}")


def with_adapters(model: Model, adapters: tuple[Any, ...]) -> Model:
    """Returns the model with other adapters."""
    changed: Model = model.clone(config=dataclasses.replace(model.config, adapters=adapters))
    return changed


def adapted_maps(model: Model) -> dict[str, AdaptedMap]:
    """Returns the maps of a model that have adapters, by their full names."""
    if not model.config.adapters:
        return {}
    return {name: one for name, one in linear_maps(model).items() if one.adapters}


@computed_once
def linear_maps(model: Model) -> dict[str, AdaptedMap]:
    """Returns all maps of a model, with or without adapters, by their full names."""
    config = model.config
    recorder = _Recorder()
    boxes = parameters(with_adapters(model, (*config.adapters, recorder)))
    maps: dict[str, AdaptedMap] = {}
    for name, site in recorder.sites.items():
        attached = tuple(map_adapters(config.adapters, name))
        beside = {
            full.rpartition("/")[2]: box
            for full, box in boxes.items()
            if full.rpartition("/")[0] == name
        }
        maps[name] = AdaptedMap(
            site=site,
            adapters=attached,
            stacked_layers=beside["kernel"].names[0] == "layers",
            own={part: box for part, box in beside.items() if part in OWN_PARAMETERS},
            added={part: box for part, box in beside.items() if part not in OWN_PARAMETERS},
        )
    return maps


def added_names(model: Model) -> list[str]:
    """Returns the names of the parameters that the adapters of a model add, in order."""
    if not model.config.adapters:
        return []
    return sorted(parameters(model).keys() - parameters(with_adapters(model, ())).keys())


def values_from_kernels(
    model: Model, params: Mapping[str, Float[Array, "..."]]
) -> dict[str, Float[Array, "..."]]:
    """Returns the first values of the parameters that adapters compute from kernels, by name.

    Args:
        params: of the model by name; only kernels are read.
    """
    values: dict[str, Any] = {}
    for name, one in adapted_maps(model).items():
        for adapter in one.adapters:
            if isinstance(adapter, KernelAdapter):
                made = one.of_layers(
                    lambda kernel, one=one, adapter=adapter: adapter.from_kernel(one.site, kernel),
                    params[f"{name}/kernel"],
                )
                values |= {f"{name}/{part}": value for part, value in made.items()}
    return values


def check_mergeable(one: AdaptedMap) -> None:
    """Raises a UserError if an adapter of a map cannot be merged."""
    for adapter in one.adapters:
        if not isinstance(adapter, MergeableAdapter):
            raise UserError(
                f"T5Config.adapters: {adapter} of {one.site.name} cannot be merged, as it has no "
                "method `merged`; bind convert.merge_adapters=False to keep it"
            )


def merged_weights(
    one: AdaptedMap, weights: MapWeights, added: Mapping[str, Float[Array, "..."]]
) -> MapWeights:
    """Returns the kernel and the bias of an adapted map without its adapters, for all layers."""

    def of_layer(weights: MapWeights, added: Mapping[str, Float[Array, "..."]]) -> MapWeights:
        site = one.site_with(weights)
        for adapter in one.adapters:
            assert isinstance(adapter, MergeableAdapter), adapter
            weights = adapter.merged(site, weights, added)
        return weights

    result: MapWeights = one.of_layers(of_layer, weights, dict(added))
    return result
