"""Several adapters over one base, of which each row of a batch chooses its own.

Only inference uses them: the parameters of the rows are gathered once per batch.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5lite.core.errors import UserError
from t5lite.models.adapted_maps import AdaptedMap, adapted_maps, added_names, with_adapters
from t5lite.models.adapters import Adapter, Axis, MapFunction, MapSite
from t5lite.models.initializers import ConstantInit
from t5lite.models.model import GenerativeModel, Model

# Of a row without an adapter.
NO_ADAPTER = -1
# Whether a row has an adapter, 1 or 0; a parameter of each adapted map [batch].
_CHOSEN = "adapter_chosen"
_BATCH_LETTER = "b"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptersOfRows:
    """The adapters of a model with parameters of their own for each row of a batch.

    Parameters of a map: those of the adapters with a first axis [batch], and adapter_chosen.
    """

    adapters: tuple[Adapter, ...]
    rows: int

    def attaches_to(self, name: str) -> bool:
        """Whether one of the adapters changes the map of this full name."""
        return any(adapter.attaches_to(name) for adapter in self.adapters)

    def wrap(self, site: MapSite, apply: MapFunction) -> MapFunction:
        """Returns the map that each row computes with its own parameters."""
        of_batch = Axis("batch", self.rows)
        values: dict[str, Any] = {}

        def made(name: str, _: Any, *axes: Axis) -> Any:
            values[name] = site.parameter(name, ConstantInit(0.0), of_batch, *axes)
            return values[name][0]

        # Makes the parameters; the map of one row is not used.
        self._nested(dataclasses.replace(site, parameter=made), apply)
        chosen = site.parameter(_CHOSEN, ConstantInit(0.0), of_batch)
        x_axis, result_axis = (
            axes.index(_BATCH_LETTER) for axes in (site.letters.x, site.letters.result)
        )

        def of_row(x: Any, own: Mapping[str, Any], chosen: Any) -> Any:
            read = dataclasses.replace(site, parameter=lambda name, *_: own[name])
            return jnp.where(chosen > 0, self._nested(read, apply)(x), apply(x))

        def adapted(x: Float[Array, "..."]) -> Float[Array, "..."]:
            # NOTE: in decoding, feed-forward layers read the hypotheses of a row as rows.
            axis = x_axis
            parts = x.reshape(*x.shape[:axis], self.rows, -1, *x.shape[axis + 1 :])
            in_axes = (axis, 0, 0)
            of_rows: Any = jax.vmap(of_row, in_axes=in_axes, out_axes=result_axis)
            result = of_rows(parts, values, chosen)
            axis = result_axis
            return result.reshape(*result.shape[:axis], -1, *result.shape[axis + 2 :])

        return adapted

    def _nested(self, site: MapSite, apply: MapFunction) -> MapFunction:
        for adapter in self.adapters:
            if adapter.attaches_to(site.name):
                apply = adapter.wrap(site, apply)
        return apply


# From parameters as `stacked_params` returns them, and the number of the adapter of each row, to a
# model of these rows and its parameters.
BindRows = Callable[[Any, Int[Array, "b"]], tuple[GenerativeModel, Any]]


def stacked_params(params: Sequence[Any], names: Sequence[str]) -> Any:
    """Returns the parameters of a base, and those of its adapters stacked by their numbers.

    Args:
        params: of the model with each adapter.
        names: of the parameters of the adapters.
    """
    flat = [flax.traverse_util.flatten_dict(each, sep="/") for each in params]
    added = {name: jnp.stack([each[name] for each in flat]) for name in names}
    base = {name: value for name, value in flat[0].items() if name not in added}
    return {"base": flax.traverse_util.unflatten_dict(base, sep="/"), "adapters": added}


def make_bind_rows(model: GenerativeModel) -> BindRows:
    """Returns the function that gives each row of a batch its adapter.

    Raises:
        UserError: if the model has no adapters, or adapted experts, which read tokens of all rows.
    """
    maps = adapted_maps(model)
    names = added_names(model)
    _check_maps(model, maps)

    def bind_rows(params: Any, numbers: Int[Array, "b"]) -> tuple[GenerativeModel, Any]:
        rows = numbers.shape[0]
        flat = flax.traverse_util.flatten_dict(params["base"], sep="/")
        chosen = (numbers != NO_ADAPTER).astype(jnp.float32)
        for name, one in maps.items():
            own = {_CHOSEN: chosen}
            if one.stacked_layers:
                num_layers = one.own["kernel"].value.shape[0]
                own[_CHOSEN] = jnp.broadcast_to(chosen, (num_layers, rows))
            for part in one.added:
                # Numbers of no adapter read the first, whose results are not used.
                stacked = params["adapters"][f"{name}/{part}"]
                value = jnp.take(stacked, jnp.maximum(numbers, 0), axis=0)
                own[part] = jnp.swapaxes(value, 0, 1) if one.stacked_layers else value
            flat |= {f"{name}/{part}": value for part, value in own.items()}
        of_rows = AdaptersOfRows(adapters=model.config.adapters, rows=rows)
        bound: Any = with_adapters(model, (of_rows,))
        return bound, flax.traverse_util.unflatten_dict(flat, sep="/")

    assert names
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
