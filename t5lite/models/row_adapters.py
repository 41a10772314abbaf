"""Several adapters over one base, of which each row of a batch chooses its own.

Only inference uses them: the parameters of the rows are gathered once per batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t5lite.core.errors import UserError
from t5lite.models.adapted_maps import AdaptedMap, adapted_maps, added_names, with_adapters
from t5lite.models.adapters import Adapter, Axis, MapFunction, MapSite
from t5lite.models.initializers import ConstantInit
from t5lite.models.model import GenerativeModel, Model

# Of a row without an adapter.
NO_ADAPTER = -1
# Which kind of adapter a row has, or `NO_ADAPTER`; a parameter of each adapted map [batch].
_KIND = "adapter_kind"
_BATCH_LETTER = "b"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptersOfRows:
    """Adapters with parameters of their own for each row of a batch, of one of several kinds.

    Parameters of a map: adapter_kind [batch], and for each kind those of its adapters with a first
    axis [batch], under the names `of_kind` returns.

    Args:
        kinds: for each kind what T5Config.adapters is for one adapter alone; they may differ in
            ranks, in maps and in class.
        rows: of a batch.
    """

    kinds: tuple[tuple[Adapter, ...], ...]
    rows: int

    def attaches_to(self, name: str) -> bool:
        """Whether an adapter of any kind changes the map of this full name."""
        return any(_of_map(adapters, name) for adapters in self.kinds)

    def wrap(self, site: MapSite, apply: MapFunction) -> MapFunction:
        """Returns the map that each row computes with its own parameters."""
        of_batch = Axis("batch", self.rows)
        nested = {}
        values: dict[int, dict[str, Any]] = {}
        for kind, adapters in enumerate(self.kinds):
            if attached := _of_map(adapters, site.name):
                nested[kind] = functools.partial(_nested, attached, apply=apply)
                values[kind] = self._made(site, kind, nested[kind])
        kinds = site.parameter(_KIND, ConstantInit(0.0), of_batch)
        x_axis, result_axis = (
            axes.index(_BATCH_LETTER) for axes in (site.letters.x, site.letters.result)
        )

        def of_row(x: Any, own: Mapping[int, Mapping[str, Any]], kind: Any) -> Any:
            result = apply(x)
            for each, parts in own.items():
                read = dataclasses.replace(site, parameter=lambda name, *_, p=parts: p[name])
                result = jnp.where(kind == each, nested[each](read)(x), result)
            return result

        def adapted(x: Float[Array, "..."]) -> Float[Array, "..."]:
            # NOTE: in decoding, feed-forward layers read the hypotheses of a row as rows.
            axis = x_axis
            parts = x.reshape(*x.shape[:axis], self.rows, -1, *x.shape[axis + 1 :])
            in_axes = (axis, 0, 0)
            of_rows: Any = jax.vmap(of_row, in_axes=in_axes, out_axes=result_axis)
            result = of_rows(parts, values, kinds)
            axis = result_axis
            return result.reshape(*result.shape[:axis], -1, *result.shape[axis + 2 :])

        return adapted

    def _made(
        self, site: MapSite, kind: int, nested: Callable[[MapSite], MapFunction]
    ) -> dict[str, Any]:
        """Makes the parameters of a kind, or returns their values; the map made is not used."""
        values: dict[str, Any] = {}

        def made(name: str, _: Any, *axes: Axis) -> Any:
            of_batch = Axis("batch", self.rows)
            values[name] = site.parameter(of_kind(name, kind), ConstantInit(0.0), of_batch, *axes)
            return values[name][0]

        nested(dataclasses.replace(site, parameter=made))
        return values


def of_kind(name: str, kind: int) -> str:
    """Returns the name of a parameter among those of several kinds of adapters.

    >>> of_kind("encoder/layers/attention/query/lora_up", 1)
    'encoder/layers/attention/query/lora_up_1'
    """
    return f"{name}_{kind}"


def _of_map(adapters: Sequence[Adapter], name: str) -> list[Adapter]:
    return [adapter for adapter in adapters if adapter.attaches_to(name)]


def _nested(adapters: Sequence[Adapter], site: MapSite, *, apply: MapFunction) -> MapFunction:
    for adapter in adapters:
        apply = adapter.wrap(site, apply)
    return apply


# From parameters as `stacked_params` returns them, and the number of the adapter of each row, to a
# model of these rows and its parameters.
BindRows = Callable[[Any, Int[Array, "b"]], tuple[GenerativeModel, Any]]


def kinds_of(models: Sequence[Model]) -> list[tuple[Adapter, ...]]:
    """Returns the different choices of adapters of some models, in order."""
    kinds: list[tuple[Adapter, ...]] = []
    for model in models:
        # Not a set: an adapter from outside may hold a list.
        if model.config.adapters not in kinds:
            kinds.append(model.config.adapters)
    return kinds


def stacked_params(params: Sequence[Any], models: Sequence[Model]) -> Any:
    """Returns the parameters of a base, and those of its adapters, stacked for each kind.

    Args:
        params: of the model with each adapter, in order; of all but the first the parameters of
            the adapter are enough.
        models: with each adapter.
    """
    flat = [flax.traverse_util.flatten_dict(each, sep="/") for each in params]
    adapters = {}
    for kind, chosen in enumerate(kinds_of(models)):
        numbers = [n for n, model in enumerate(models) if model.config.adapters == chosen]
        for name in added_names(models[numbers[0]]):
            adapters[of_kind(name, kind)] = jnp.stack([flat[n][name] for n in numbers])
    added = frozenset(added_names(models[0]))
    base = {name: value for name, value in flat[0].items() if name not in added}
    return {"base": flax.traverse_util.unflatten_dict(base, sep="/"), "adapters": adapters}


def make_bind_rows(models: Sequence[GenerativeModel]) -> BindRows:
    """Returns the function that gives each row of a batch its adapter.

    Args:
        models: one base with each adapter; the adapters may be of different kinds.

    Raises:
        UserError: if a model has no adapters, or adapted experts, which read tokens of all rows.
    """
    kinds = kinds_of(models)
    of_number = np.array([kinds.index(model.config.adapters) for model in models], np.int32)
    # The number of each adapter among those of its kind.
    within = np.array([list(of_number[:n]).count(k) for n, k in enumerate(of_number)], np.int32)
    maps: list[dict[str, AdaptedMap]] = []
    for adapters in kinds:
        model: Any = with_adapters(models[0], adapters)
        maps.append(adapted_maps(model))
        _check_maps(model, maps[-1])

    def bind_rows(params: Any, numbers: Int[Array, "b"]) -> tuple[GenerativeModel, Any]:
        rows = numbers.shape[0]
        flat = flax.traverse_util.flatten_dict(params["base"], sep="/")
        # Numbers of no adapter read the first, whose results are not used.
        positive = jnp.maximum(numbers, 0)
        row_kinds = jnp.where(numbers == NO_ADAPTER, NO_ADAPTER, jnp.asarray(of_number)[positive])
        for kind, maps_of_kind in enumerate(maps):
            indices = jnp.where(row_kinds == kind, jnp.asarray(within)[positive], 0)
            for name, one in maps_of_kind.items():
                own = {_KIND: row_kinds.astype(jnp.float32)}
                if one.stacked_layers:
                    num_layers = one.own["kernel"].value.shape[0]
                    own[_KIND] = jnp.broadcast_to(own[_KIND], (num_layers, rows))
                for part in one.added:
                    stacked = params["adapters"][of_kind(f"{name}/{part}", kind)]
                    value = jnp.take(stacked, indices, axis=0)
                    value = jnp.swapaxes(value, 0, 1) if one.stacked_layers else value
                    own[of_kind(part, kind)] = value
                flat |= {f"{name}/{part}": value for part, value in own.items()}
        of_rows = AdaptersOfRows(kinds=tuple(kinds), rows=rows)
        bound: Any = with_adapters(models[0], (of_rows,))
        return bound, flax.traverse_util.unflatten_dict(flat, sep="/")

    return bind_rows


def _check_maps(model: Model, maps: Mapping[str, AdaptedMap]) -> None:
    for adapter in model.config.adapters:
        if not isinstance(adapter, Adapter):
            raise UserError(
                f"--adapter takes adapters of linear maps alone, got {adapter}; name the "
                "checkpoint by --checkpoint"
            )
    if not maps:
        raise UserError(
            f"--adapter needs checkpoints with adapters of linear maps, got a "
            f"{type(model).__name__} without; name it by --checkpoint"
        )
    for name, one in maps.items():
        if one.site.stacked:
            raise UserError(
                f"--adapter takes no adapters of experts, which read tokens of all rows, got "
                f"{name}; merge one adapter with t5lite convert"
            )
