"""Parameters from a checkpoint of another model: which are restored, and from what."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from t5lite.core.errors import UserError, check_choice, suggestion
from t5lite.core.lazy import by_name
from t5lite.training.state_reading import is_array
from t5lite.training.stored_checkpoints import StoredCheckpoints

_Shape = tuple[int, ...]

# The arguments of each kind of rule.
RULE_ARGUMENTS = {
    "map": "a pattern of the model's parameters and a name in the checkpoint, as in re.sub",
    "fresh": "a pattern of the model's parameters that keep their initial values",
    "grow": "a pattern of the model's parameters, of which the checkpoint contains the first part",
    "layers": "a pattern of the model's parameters, and the checkpoint's layer for each of theirs",
    "skip": "a pattern of the checkpoint's parameters that are ignored",
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """The source of a parameter.

    Args:
        source: its name in the checkpoint; None for its initial value.
        grown: whether the checkpoint has only the first part of it; the rest is initialized.
        layers: the layer of the checkpoint for each of its own; None for the same layers.
    """

    source: str | None
    grown: bool = False
    layers: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if self.source is None:
            return "initialized"
        if self.layers is not None:
            return f"{self.source}, layers {', '.join(map(str, self.layers))}"
        return f"{self.source}, the rest initialized" if self.grown else self.source


def check_rules(rules: Sequence[Any]) -> None:
    """Raises a UserError if a rule has the wrong form."""
    for rule in rules:
        if not (isinstance(rule, tuple | list) and rule and isinstance(rule[0], str)):
            raise UserError(
                f"train.restore_rules must be tuples such as ('fresh', 'decoder/.*'), got {rule!r}"
            )
        kind, *rest = rule
        check_choice("train.restore_rules", kind, RULE_ARGUMENTS)
        types: dict[str, Sequence[type]] = {"map": (str, str), "layers": (str, Sequence)}
        wanted = types.get(kind, (str,))
        fits = len(rest) == len(wanted) and all(map(isinstance, rest, wanted))
        if kind == "layers" and fits:
            fits = not isinstance(rest[1], str) and all(type(n) is int and n >= 0 for n in rest[1])
        if not fits:
            raise UserError(
                f"train.restore_rules: {kind!r} takes {RULE_ARGUMENTS[kind]}, got {tuple(rest)!r}"
            )
        try:
            # Finds references to missing groups even if nothing matches.
            re.compile(rest[0]).sub(rest[1] if kind == "map" else "", "")
        except (re.error, IndexError) as error:
            raise UserError(
                f"train.restore_rules: {tuple(rest)!r} must be a regular expression"
                f"{' and a name made of its groups' if kind == 'map' else ''}: {error}"
            ) from error


def plan_restore(
    rules: Sequence[Any],
    source: Mapping[str, _Shape],
    wanted: Mapping[str, _Shape],
    owner: str,
    added: Collection[str] = (),
) -> dict[str, Origin]:
    """Returns the source of each of the model's parameters.

    A pattern must match a whole name; among rules of one kind the first match applies. A parameter
    without a rule comes from the parameter of the same name.

    Args:
        source: shapes of the checkpoint's parameters.
        wanted: shapes of the model's parameters.
        owner: the checkpoint, for messages.
        added: the model's parameters that adapters add; they need no rule and keep their initial
            values if the checkpoint contains none of them.

    Raises:
        UserError: if a rule matches nothing, a shape does not fit, or a parameter on either side
            has no counterpart.

    >>> plan_restore(
    ...     [("map", "encoder/(.*)", r"old/\\1"), ("skip", "head")],
    ...     {"old/a": (2,), "head": (3,)}, {"encoder/a": (2,)}, "C")
    {'encoder/a': Origin(source='old/a', grown=False, layers=None)}
    """
    used: set[int] = set()

    def first(kind: str, name: str) -> tuple[Any, re.Match[str]] | None:
        for index, rule in enumerate(rules):
            if rule[0] == kind and (match := re.fullmatch(rule[1], name)):
                used.add(index)
                return rule, match
        return None

    is_new = frozenset(added if not source.keys() & added else ())
    origins: dict[str, Origin] = {}
    for name, shape in wanted.items():
        is_ruled = any(re.fullmatch(rule[1], name) for rule in rules if rule[0] != "skip")
        if first("fresh", name) or (name in is_new and not is_ruled):
            origins[name] = Origin(None)
            continue
        mapped, layers, grown = (first(kind, name) for kind in ("map", "layers", "grow"))
        theirs = mapped[1].expand(mapped[0][2]) if mapped else name
        origin = Origin(theirs, grown is not None, tuple(layers[0][2]) if layers else None)
        _check_fits(owner, name, shape, origin, source)
        origins[name] = origin
    # An initialized parameter replaces the checkpoint's parameter of the same name.
    taken = {origin.source or name for name, origin in origins.items()}
    left = sorted(set(source) - taken)
    if left := [name for name in left if not first("skip", name)]:
        raise UserError(
            f"{owner} contains {left[0]}, which no parameter of the model uses; add "
            f"('skip', {left[0]!r}) to train.restore_rules to ignore it"
        )
    for index, rule in enumerate(rules):
        if index not in used:
            side = source if rule[0] == "skip" else wanted
            matched = next((name for name in side if re.fullmatch(rule[1], name)), None)
            why = f"matches nothing; {suggestion(rule[1], side)}"
            if matched is not None and rule[0] == "skip":
                why = f"matches {matched}, which the model uses"
            elif matched is not None:
                why = f"matches {matched}, for which an earlier rule applies"
            raise UserError(f"train.restore_rules: {tuple(rule)!r} {why}")
    return origins


def _check_fits(
    owner: str,
    name: str,
    shape: _Shape,
    origin: Origin,
    source: Mapping[str, _Shape],
) -> None:
    theirs = source.get(origin.source or "")
    if theirs is None:
        raise UserError(
            f"{owner} does not contain {origin.source}, the source of {name}; add ('fresh', "
            f"{name!r}) or ('map', {name!r}, NAME) to train.restore_rules"
        )
    if origin.layers is not None:
        if "/layers/" not in name:
            raise UserError(
                f"train.restore_rules: ('layers', ...) matches {name}, which has no stacked "
                "layers; use a pattern such as 'encoder/layers/.*'"
            )
        fits = (len(origin.layers), *theirs[1:]) == shape and max(origin.layers) < theirs[0]
        if origin.grown or not fits:
            raise UserError(
                f"{name} has shape {shape} and {origin.source} in {owner} {theirs}: 'layers' must "
                f"name one of its layers for each of {shape[0]}, got {list(origin.layers)}"
            )
    elif origin.grown:
        if len(theirs) != len(shape) or any(a > b for a, b in zip(theirs, shape, strict=True)):
            raise UserError(
                f"{name} has shape {shape}, which cannot grow from {origin.source} in {owner}, "
                f"{theirs}"
            )
    elif theirs != shape:
        raise UserError(
            f"checkpoint {owner} does not fit the model: {name} must have shape {shape}, got "
            f"{theirs}; see ('grow', ...), ('layers', ...) and ('fresh', ...) of "
            "train.restore_rules"
        )


def restore_by_rules(
    checkpoints: StoredCheckpoints,
    step: int,
    fresh: Any,
    rules: Sequence[Any],
    added: Collection[str] = (),
) -> tuple[Any, dict[str, Origin]]:
    """Returns the parameters according to `plan_restore`, with the shardings of `fresh`.

    Those of a checkpoint with a moving average are the average.

    Args:
        fresh: the initial parameters of the model.
        added: the names of those that adapters add.
    """
    new = by_name(fresh)
    stored = by_name(checkpoints.metadata(step)["params"], is_leaf=is_array)
    paths = checkpoints.param_paths(step)
    origins = plan_restore(
        rules,
        {name: tuple(leaf.shape) for name, leaf in stored.items()},
        {name: leaf.shape for name, leaf in new.items()},
        checkpoints.path(step),
        added,
    )
    whole = {
        name: origin.source
        for name, origin in origins.items()
        if origin.source is not None and origin.layers is None and not origin.grown
    }
    wanted = {
        paths[source]: jax.ShapeDtypeStruct(
            new[name].shape, new[name].dtype, sharding=new[name].sharding
        )
        for name, source in whole.items()
    }
    # All at once, because Orbax reads in parallel; a source of several parameters is read once.
    item = flax.traverse_util.unflatten_dict(wanted, sep="/")
    read = by_name(checkpoints.restore_part(step, item)) if wanted else {}
    made: dict[str, jax.Array] = {}
    for name, origin in origins.items():
        if name in whole:
            made[name] = jax.device_put(read[paths[whole[name]]], new[name].sharding)
        elif origin.source is None:
            made[name] = new[name]
        else:
            made[name] = _changed(checkpoints, step, paths, new[name], origin)
    return flax.traverse_util.unflatten_dict(made, sep="/"), origins


def _changed(
    checkpoints: StoredCheckpoints,
    step: int,
    paths: Mapping[str, str],
    fresh: jax.Array,
    origin: Origin,
) -> jax.Array:
    """Returns a parameter with other layers or another size; every process reads all of it."""
    assert origin.source is not None
    theirs = checkpoints.restore_array(step, paths[origin.source]).astype(fresh.dtype)
    if origin.layers is not None:
        picked = theirs[list(origin.layers)]
        return jax.make_array_from_callback(fresh.shape, fresh.sharding, picked.__getitem__)
    part = tuple(slice(size) for size in theirs.shape)
    grow = jax.jit(
        lambda new, old: new.at[part].set(jnp.asarray(old)), out_shardings=fresh.sharding
    )
    return grow(fresh, theirs)


def as_table(origins: Mapping[str, Origin]) -> list[str]:
    """Returns a line for each parameter and its source."""
    width = max(map(len, origins), default=0)
    return [f"  {name.ljust(width)}  {origin}" for name, origin in origins.items()]
