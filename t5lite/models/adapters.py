"""What an adapter is: parameters beside those of a map, and a change to what the map computes.

Only the protocol lives here. Adapters are frozen dataclasses that know no model: they select maps
by name and read the dimensions of a map from its `MapSite`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.core.errors import UserError
from t5lite.core.named import import_function, named

# Adapters that gin files name as text; others are named as "module:function".
ADAPTERS: Mapping[str, Callable[[], "Adapter"]] = {}


class SiteLetters(NamedTuple):
    """The letters of a map's einsum string: of its input, its kernel in three parts, its result."""

    x: str
    stacked: str
    inputs: str
    outputs: str
    result: str


class Axis(NamedTuple):
    """A dimension of a parameter: its logical name, which sharding uses, and its size."""

    name: str
    size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapSite:
    """A linear map as an adapter sees it.

    Args:
        name: full name of the map, such as `decoder/layers/self_attention/query`; the same in
            training and in cached decoding, and the same for all layers of a stack.
        einsum: what the map computes, "x,kernel->result".
        stacked: dimensions over which there is a map each, such as experts.
        inputs, outputs: dimensions that the map contracts and produces.
        kernel: the map's own, with the axes `stacked`, `inputs` and `outputs`.
        parameter: `parameter(name, initializer, *axes)` makes a parameter beside the kernel and
            returns its value. An axis that the adapter adds has the logical name "adapter".
        bias: added to the result, with the axes `outputs`; None if the map has none.
        dropout_key: returns a random key in training, and None otherwise.
    """

    name: str
    einsum: str
    stacked: tuple[Axis, ...]
    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]
    kernel: Any
    parameter: Callable[..., Any]
    bias: Any = None
    dropout_key: Callable[[], Any] = lambda: None

    @property
    def letters(self) -> SiteLetters:
        """The letters of the einsum string by what they stand for.

        >>> site = MapSite(name="query", einsum="ble,ehd->blhd", stacked=(),
        ...     inputs=(Axis("embed", 8),), outputs=(Axis("heads", 2), Axis("kv", 4)),
        ...     kernel=None, parameter=print)
        >>> site.letters
        SiteLetters(x='ble', stacked='', inputs='e', outputs='hd', result='blhd')
        """
        operands, result = self.einsum.split("->")
        x, kernel = operands.split(",")
        first_output = len(self.stacked) + len(self.inputs)
        return SiteLetters(
            x=x,
            stacked=kernel[: len(self.stacked)],
            inputs=kernel[len(self.stacked) : first_output],
            outputs=kernel[first_output:],
            result=result,
        )

    @property
    def num_inputs(self) -> int:
        """Size of the input of one map."""
        return math.prod(axis.size for axis in self.inputs)

    @property
    def num_outputs(self) -> int:
        """Size of the result of one map."""
        return math.prod(axis.size for axis in self.outputs)

    def through(self, letter: str) -> tuple[str, str]:
        """Returns the einsum strings from the input to a new axis, and from there to the result.

        >>> axes = (Axis("embed", 8),), (Axis("heads", 2), Axis("kv", 4))
        >>> site = MapSite(name="query", einsum="ble,ehd->blhd", stacked=(), inputs=axes[0],
        ...     outputs=axes[1], kernel=None, parameter=print)
        >>> site.through("r")
        ('ble,er->blr', 'blr,rhd->blhd')
        """
        x, stacked, inputs, outputs, result = self.letters
        middle = "".join(axis for axis in result if axis not in outputs) + letter
        down = f"{x},{stacked}{inputs}{letter}->{middle}"
        return down, f"{middle},{stacked}{letter}{outputs}->{result}"


def broadcast_to_axes(
    values: Float[Array, "..."], letters: str, target: str
) -> Float[Array, "..."]:
    """Returns values with the axes `letters` such that they broadcast against the axes `target`.

    >>> broadcast_to_axes(jnp.ones((3, 2)), "xf", "bfxc").shape
    (1, 2, 3, 1)
    """
    order = sorted(letters, key=target.index)
    values = jnp.transpose(values, [letters.index(letter) for letter in order])
    sizes = dict(zip(order, values.shape, strict=True))
    return values.reshape([sizes.get(letter, 1) for letter in target])


class MapWeights(NamedTuple):
    """A kernel, and a bias or None."""

    kernel: Any
    bias: Any


# From the input of a map to its output.
MapFunction = Callable[[Float[Array, "..."]], Float[Array, "..."]]


@runtime_checkable
class Adapter(Protocol):
    """A frozen dataclass whose fields are plain data.

    - `attaches_to(name)`: whether it changes the map of this full name.
    - `wrap(site, apply)`: returns the map with the adapter, given the map without. It makes its
      parameters by `site.parameter` and may change the input, the output, or compute from the
      kernel. It is called while the model is traced, once for every call of the map.
    """

    def attaches_to(self, name: str) -> bool: ...
    def wrap(self, site: MapSite, apply: MapFunction) -> MapFunction: ...


def map_adapters(adapters: Sequence[Any], name: str) -> list[Adapter]:
    """Returns the adapters of the map of this full name."""
    return [a for a in adapters if isinstance(a, Adapter) and a.attaches_to(name)]


@runtime_checkable
class KernelAdapter(Protocol):
    """An adapter some of whose parameters start from the kernels of their maps.

    - `from_kernel(site, kernel)`: the first values of these parameters by name. A run that starts
      from a checkpoint calls it with the checkpoint's kernels.
    """

    def from_kernel(
        self, site: MapSite, kernel: Float[Array, "..."]
    ) -> Mapping[str, Float[Array, "..."]]: ...


class AddedProducts(NamedTuple):
    """Products of activations with the kernels that an adapter adds to a map, one after another.

    Args:
        reads: what the first reads: the "input" of the map, or its "result". With "scaled_input"
            the last result is the new input of the map.
        kernels: the name of each parameter, and its multiplications for one input of the map; 0 for
            factors of single elements.
    """

    reads: str
    kernels: tuple[tuple[str, int], ...]


@runtime_checkable
class CountedAdapter(Protocol):
    """An adapter whose matrix products count among the FLOPs of a model.

    - `products(site)`: these, for a `site` without values. Sums of chains are not named.
    """

    def products(self, site: MapSite) -> Sequence[AddedProducts]: ...


@runtime_checkable
class MergeableAdapter(Protocol):
    """An adapter whose effect on a map is that of another kernel and bias.

    - `merged(site, weights, added)`: these, given those of the map with the adapters further in;
      `site` has the map's own. `added` are the adapter's parameters by name.
    """

    def merged(
        self, site: MapSite, weights: MapWeights, added: Mapping[str, Float[Array, "..."]]
    ) -> MapWeights: ...


def resolve_adapter(owner: str, given: Any) -> Any:
    """Returns an adapter, or the one that a name of `ADAPTERS` or a "module:function" makes.

    Raises:
        UserError: if it is no adapter, or no frozen dataclass, by whose fields a checkpoint could
            describe it.
    """
    adapter = named(owner, given, ADAPTERS)() if isinstance(given, str) else given
    params = getattr(adapter, "__dataclass_params__", None)
    if isinstance(adapter, type) or not _is_adapter(adapter):
        raise UserError(
            f"{owner} must be adapters, with the methods attaches_to and wrap, attaches_to and "
            f"keys_values, or vectors, got {given!r}"
        )
    if params is None or not params.frozen:
        raise UserError(f"{owner} must be frozen dataclasses, got {type(adapter).__name__}")
    return adapter


def _is_adapter(given: Any) -> bool:
    of_name = hasattr(given, "wrap") or hasattr(given, "keys_values")
    return hasattr(given, "vectors") or (of_name and hasattr(given, "attaches_to"))


def describe_adapter(adapter: Any) -> dict[str, Any]:
    """Returns the class and the fields of an adapter, for JSON."""
    kind = type(adapter)
    fields = {field.name: getattr(adapter, field.name) for field in dataclasses.fields(adapter)}
    return {"adapter": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}


def adapter_from_description(described: Mapping[str, Any]) -> Any:
    """Returns the adapter that `describe_adapter` was given.

    Raises:
        UserError: if its class cannot be imported or is no adapter.
    """
    name = described["adapter"]
    fields = described["fields"]
    try:
        kind = import_function("the checkpoint's adapter", name)
    except UserError as error:
        raise UserError(f"{error}; put its module on PYTHONPATH") from error
    # The class is checked before it is called: a checkpoint may name anything.
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and _is_adapter(kind)):
        raise UserError(f"the checkpoint names {name!r} as an adapter, which is none")
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return resolve_adapter("T5Config.adapters", kind(**tuples))
