"""A stack of layers: a loop over stacked parameters, so that compile time does not grow with depth.

The parameters of all layers are stacked along a first axis named "layers", whatever the pattern in
which the layers differ: a checkpoint can be used with another pattern, and names stay the same.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.core.lazy import by_name
from t5lite.models.config_fields import T5Fields
from t5lite.models.experts import EXPERT_STATISTICS, Experts
from t5lite.models.feedforward import FeedForward
from t5lite.models.linear import LINEAR_RESULT
from t5lite.models.masks import Window

# The output of each layer, kept only where a caller asks for it.
LAYER_OUTPUTS = "layer_outputs"

Stream = Float[Array, "b l e"]

# What the forward pass of a layer keeps for the backward pass, from all of it to the least.
# "attention" is no policy of the layer: attention alone recomputes its weights.
REMAT_POLICIES: Mapping[str, Callable[..., Any] | None] = {
    "none": None,
    "attention": None,
    "minimal": jax.checkpoint_policies.save_only_these_names(LINEAR_RESULT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class WindowPattern(NamedTuple):
    """The windows of a stack's layers.

    Args:
        windows: the different ones.
        kinds: for each layer, which of them it has.
        period: the kinds repeat after so many layers.
        apart: layers before the first repetition, which are not like the others.
    """

    windows: tuple[Window | None, ...]
    kinds: tuple[int, ...]
    period: int
    apart: int = 0


def window_pattern(
    windows: Sequence[Window | None], num_layers: int, apart: int = 0
) -> WindowPattern:
    """Returns the windows of `num_layers` layers that repeat `windows`; none of them is no limit.

    >>> window_pattern([(4, 4), None], 5)
    WindowPattern(windows=((4, 4), None), kinds=(0, 1, 0, 1, 0), period=2, apart=0)
    >>> window_pattern([(4, 4), (4, 4)], 3)
    WindowPattern(windows=((4, 4),), kinds=(0, 0, 0), period=1, apart=0)
    """
    pattern = tuple(windows) or (None,)
    different = tuple(dict.fromkeys(pattern))
    kinds = tuple(different.index(pattern[n % len(pattern)]) for n in range(num_layers))
    alike = kinds[apart:]
    period = next((n for n in range(1, len(alike)) if alike[n:] == alike[:-n]), max(1, len(alike)))
    return WindowPattern(different, kinds, period, apart)


def constrained(x: Stream) -> Stream:
    """Constrains the sharding of the residual stream between layers."""
    return nn.with_logical_constraint(x, ("batch", "length", "activation_embed"))


def feed_forward(config: T5Fields, full_name: str) -> FeedForward | Experts:
    """Returns the last sublayer: one feed-forward layer, or many experts."""
    kind = FeedForward if config.num_experts is None else Experts
    return kind(config, full_name)


def stacked_layers(
    layer: type[nn.Module],
    config: T5Fields,
    pattern: WindowPattern,
    *,
    num_arguments: int,
    init: bool,
    first: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Returns all layers of a stack as one module, called like a layer.

    Args:
        layer: a class with the fields `config` and `kind`, an index of `pattern.windows`.
        num_arguments: of a layer, besides the residual stream; all layers get the same.
        init: whether parameters are being made.
        first: arguments of the `pattern.apart` layers at the start, which may lack parameters of
            the others: a stacked parameter belongs to the last layers, as many as it has rows.
    """
    policy = REMAT_POLICIES[config.remat]
    if policy is not None:
        # The loop keeps XLA from merging the two computations, so the barrier can go.
        layer = nn.remat(layer, policy=policy, prevent_cse=False)
    if pattern.period == 1 and not pattern.apart:
        return _scan(layer, config, len(pattern.kinds), num_arguments)(config)
    stored = _with_params(
        _PatternedLayers, lambda params: _grouped(params, pattern), _flattened, init=init
    )
    return stored(layer, config, pattern, num_arguments, first)


def _scan(layer: Any, config: T5Fields, length: int, num_arguments: int) -> Any:
    return nn.scan(
        layer,
        variable_axes={"params": 0, EXPERT_STATISTICS: 0, LAYER_OUTPUTS: 0},
        split_rngs={"params": True, "dropout": True},
        length=length,
        unroll=min(config.scan_unroll, length),
        metadata_params={nn.PARTITION_NAME: "layers"},
        # Nothing is broadcast out of a layer, and the check would trace it once more.
        check_constancy_invariants=False,
        in_axes=(nn.broadcast,) * num_arguments,
    )


class _PatternedLayers(nn.Module):
    """The layers apart, a loop over whole repetitions of a pattern, and what is left over."""

    layer: Any
    config: T5Fields
    pattern: WindowPattern
    num_arguments: int
    first: Mapping[str, Any]

    @nn.compact
    def __call__(self, x: Stream, *arguments: Any) -> tuple[Stream, None]:
        kinds = self.pattern.kinds
        period = self.pattern.period
        start, stop = _borders(self.pattern)
        for name, some, length, of_layer in (
            ("apart", kinds[:start], 1, self.first),
            ("repetitions", kinds[start:stop][:period], (stop - start) // period, {}),
            ("rest", kinds[stop:], 1, {}),
        ):
            if some:
                is_new = name not in self.variables.get("params", {})
                body = _with_params(_Layers, _separate, _together, init=is_new)
                scan = _scan(body, self.config, length, self.num_arguments)
                layers = scan(self.layer, self.config, some, of_layer, name=name)
                x, _ = layers(x, *arguments)
        return x, None


class _Layers(nn.Module):
    """Layers of these kinds, one after the other."""

    layer: Any
    config: T5Fields
    kinds: tuple[int, ...]
    of_layer: Mapping[str, Any]

    @nn.compact
    def __call__(self, x: Stream, *arguments: Any) -> tuple[Stream, None]:
        for number, kind in enumerate(self.kinds):
            layer = self.layer(self.config, kind=kind, name=str(number), **self.of_layer)
            x, _ = layer(x, *arguments)
        return x, None


def _borders(pattern: WindowPattern) -> tuple[int, int]:
    """Returns the first layer of the repetitions, and the first after them."""
    count = len(pattern.kinds)
    start = min(pattern.apart, count)
    return start, count - (count - start) % pattern.period


# The parameters of a patterned stack are stored as [layers, ...], looped over as [repetitions,
# period, ...], and used one layer at a time. Each pair of functions converts in both directions.
def _grouped(params: Any, pattern: WindowPattern) -> Any:
    count = len(pattern.kinds)
    start, stop = _borders(pattern)

    def rows(first: int, end: int, period: int) -> Any:
        def of(x: Any) -> Any:
            # Rows of the first layers may be missing.
            missing = count - len(x)
            some = x[max(0, first - missing) : max(0, end - missing)]
            return some.reshape(-1, period, *x.shape[1:]) if len(some) else None

        return _without_none(jax.tree.map(of, params))

    return {
        "apart": rows(0, start, start),
        "repetitions": rows(start, stop, pattern.period),
        "rest": rows(stop, count, count - stop),
    }


def _without_none(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    inner = {name: _without_none(part) for name, part in tree.items()}
    return {name: part for name, part in inner.items() if jax.tree.leaves(part)}


def _flattened(groups: Any) -> Any:
    parts = [groups[name] for name in ("apart", "repetitions", "rest") if name in groups]
    flat = [jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), part) for part in parts]
    return _concatenated(flat)


def _concatenated(trees: Sequence[Any]) -> Any:
    """Returns one tree of the rows of all, some of which may lack a parameter."""
    if not isinstance(trees[0], Mapping):
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *trees)
    names = sorted({name for tree in trees for name in tree})
    return {name: _concatenated([tree[name] for tree in trees if name in tree]) for name in names}


def _separate(params: Any) -> Any:
    count = len(jax.tree.leaves(params)[0])
    return {str(n): jax.tree.map(lambda x, n=n: x[n], params) for n in range(count)}


def _together(layers: Any) -> Any:
    in_order = [layers[str(n)] for n in range(len(layers))]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *in_order)


def _with_params(
    layer: Any, inwards: Callable[..., Any], outwards: Callable[..., Any], *, init: bool
) -> Any:
    """Returns `layer` with its parameters stored in another form.

    Args:
        init: whether the parameters do not exist yet. Flax runs the layer twice then.
    """

    def on_collections(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda variables: {k: function(v) if v else v for k, v in variables.items()}

    return nn.map_variables(
        layer, "params", on_collections(inwards), on_collections(outwards), init=init
    )


def unstacked(params: Any, length: int) -> dict[str, Any]:
    """Returns the parameters of each layer by its number, of stacked or already separate ones.

    A caller that runs a stack many times separates them once: a loop over the depth would copy
    each layer's parameters out of the stack in every run.
    """
    if "0" in params:
        return dict(params)
    return {str(n): jax.tree.map(lambda x, n=n: x[n], params) for n in range(length)}


def outputs_in_order(tree: Any) -> dict[str, Float[Array, "..."]]:
    """Returns what the layers of each stack recorded, by the name of the stack.

    Args:
        tree: the collection `LAYER_OUTPUTS`.
    """
    groups: dict[str, dict[tuple[str, int], Any]] = {}
    for path, leaf in by_name(tree).items():
        stack, _, *part = path.split("/")
        # Such as "output/0", or "repetitions/1/output/0" of a patterned stack.
        group = (part[0], int(part[1])) if len(part) > 2 else ("repetitions", 0)
        groups.setdefault(stack, {})[group] = leaf
    return {stack: _in_order(parts) for stack, parts in groups.items()}


def _in_order(parts: Mapping[tuple[str, int], Any]) -> Float[Array, "n b l e"]:
    found = []
    for group in ("apart", "repetitions", "rest"):
        leaves = [leaf for (name, _), leaf in sorted(parts.items()) if name == group]
        if leaves:
            each = jnp.stack(leaves, axis=1)
            found.append(each.reshape(-1, *each.shape[2:]))
    return jnp.concatenate(found)
