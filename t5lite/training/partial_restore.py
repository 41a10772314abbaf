"""Parameters from a checkpoint of another model: which come from where, and which begin anew."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from t5lite.core.errors import UserError, check_choice, suggestion
from t5lite.core.lazy import by_name
from t5lite.training.checkpoints import Checkpoints

Shape = tuple[int, ...]

# What each rule is followed by.
KINDS = {
    "map": "a pattern of the model's parameters and the name in the checkpoint, as re.sub has it",
    "fresh": "a pattern of the model's parameters that begin anew",
    "grow": "a pattern of the model's parameters, of which the checkpoint holds a part",
    "layers": "a pattern of the model's parameters, and the checkpoint's layer for each of theirs",
    "skip": "a pattern of the checkpoint's parameters that are left out",
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a parameter comes from.

    Args:
        source: its name in the checkpoint; None where it begins anew.
        grown: the checkpoint's is the first part of it, the rest begins anew.
        layers: the checkpoint's layer for each of its own; None for the same.
    """

    source: str | None
    grown: bool = False
    layers: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if self.source is None:
            return "begins anew"
        if self.layers is not None:
            return f"{self.source}, layers {', '.join(map(str, self.layers))}"
        return f"{self.source}, the rest begins anew" if self.grown else self.source


def check_rules(rules: Sequence[Any]) -> None:
    """Raises a UserError where a rule is not of its form."""
    for rule in rules:
        if not (isinstance(rule, tuple | list) and rule and isinstance(rule[0], str)):
            raise UserError(
                f"train.restore_rules must be tuples such as ('fresh', 'decoder/.*'), got {rule!r}"
            )
        kind, *rest = rule
        check_choice("train.restore_rules", kind, KINDS)
        types: dict[str, Sequence[type]] = {"map": (str, str), "layers": (str, Sequence)}
        wanted = types.get(kind, (str,))
        fits = len(rest) == len(wanted) and all(map(isinstance, rest, wanted))
        if kind == "layers" and fits:
            fits = not isinstance(rest[1], str) and all(type(n) is int and n >= 0 for n in rest[1])
        if not fits:
            raise UserError(
                f"train.restore_rules: {kind!r} takes {KINDS[kind]}, got {tuple(rest)!r}"
            )
        try:
            # Groups that the name refers to are looked up even where nothing matches.
            re.compile(rest[0]).sub(rest[1] if kind == "map" else "", "")
        except (re.error, IndexError) as error:
            raise UserError(
                f"train.restore_rules: {tuple(rest)!r} must be a regular expression"
                f"{' and a name made of its groups' if kind == 'map' else ''}: {error}"
            ) from error


def plan_restore(
    rules: Sequence[Any], source: Mapping[str, Shape], wanted: Mapping[str, Shape], owner: str
) -> dict[str, Origin]:
    """Returns where each of the model's parameters comes from.

    A pattern has to match a whole name; of rules of one kind the first that matches counts. What
    no rule is about comes from the parameter of the same name.

    Args:
        source: shapes of the checkpoint's parameters.
        wanted: shapes of the model's.
        owner: the checkpoint, for messages.

    Raises:
        UserError: where a rule matches nothing, a shape does not fit, or a parameter on either
            side is left over.

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

    origins: dict[str, Origin] = {}
    for name, shape in wanted.items():
        if first("fresh", name):
            origins[name] = Origin(None)
            continue
        mapped, layers, grown = (first(kind, name) for kind in ("map", "layers", "grow"))
        theirs = mapped[1].expand(mapped[0][2]) if mapped else name
        origin = Origin(theirs, grown is not None, tuple(layers[0][2]) if layers else None)
        _check_fits(owner, name, shape, origin, source)
        origins[name] = origin
    # What begins anew leaves the checkpoint's parameter of its name out.
    taken = {origin.source or name for name, origin in origins.items()}
    left = sorted(set(source) - taken)
    if left := [name for name in left if not first("skip", name)]:
        raise UserError(
            f"{owner} holds {left[0]}, which no parameter of the model comes from; add "
            f"('skip', {left[0]!r}) to train.restore_rules to leave it out"
        )
    for index, rule in enumerate(rules):
        if index not in used:
            side = source if rule[0] == "skip" else wanted
            matched = next((name for name in side if re.fullmatch(rule[1], name)), None)
            why = f"matches nothing; {suggestion(rule[1], side)}"
            if matched is not None and rule[0] == "skip":
                why = f"matches {matched}, which the model takes"
            elif matched is not None:
                why = f"matches {matched}, of which a rule before it says where it comes from"
            raise UserError(f"train.restore_rules: {tuple(rule)!r} {why}")
    return origins


def _check_fits(
    owner: str, name: str, shape: Shape, origin: Origin, source: Mapping[str, Shape]
) -> None:
    theirs = source.get(origin.source or "")
    if theirs is None:
        raise UserError(
            f"{owner} holds no {origin.source}, where {name} is to come from; add ('fresh', "
            f"{name!r}) or ('map', {name!r}, NAME) to train.restore_rules"
        )
    if origin.layers is not None:
        if "/layers/" not in name:
            raise UserError(
                f"train.restore_rules: ('layers', ...) matches {name}, which is not of stacked "
                "layers; write a pattern such as 'encoder/layers/.*'"
            )
        fits = (len(origin.layers), *theirs[1:]) == shape and max(origin.layers) < theirs[0]
        if origin.grown or not fits:
            raise UserError(
                f"{name} has shape {shape} and {origin.source} in {owner} {theirs}: 'layers' "
                f"needs a layer there for each of {shape[0]}, got {list(origin.layers)}"
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
    checkpoints: Checkpoints, step: int, fresh: Any, rules: Sequence[Any]
) -> tuple[Any, dict[str, Origin]]:
    """Returns the parameters that `plan_restore` says, each placed like its `fresh` one.

    Args:
        fresh: new parameters of the model.
    """
    new = by_name(fresh)
    stored = by_name(checkpoints.metadata(step)["params"], is_leaf=lambda x: hasattr(x, "shape"))
    origins = plan_restore(
        rules,
        {name: tuple(leaf.shape) for name, leaf in stored.items()},
        {name: leaf.shape for name, leaf in new.items()},
        checkpoints.path(step),
    )
    whole = {
        name: origin.source
        for name, origin in origins.items()
        if origin.source is not None and origin.layers is None and not origin.grown
    }
    wanted = {
        f"params/{source}": jax.ShapeDtypeStruct(
            new[name].shape, new[name].dtype, sharding=new[name].sharding
        )
        for name, source in whole.items()
    }
    # At once, as Orbax reads in parallel; what two take the same from is read once.
    item = flax.traverse_util.unflatten_dict(wanted, sep="/")
    read = by_name(checkpoints.restore_part(step, item)) if wanted else {}
    made: dict[str, jax.Array] = {}
    for name, origin in origins.items():
        if name in whole:
            made[name] = jax.device_put(read[f"params/{whole[name]}"], new[name].sharding)
        elif origin.source is None:
            made[name] = new[name]
        else:
            made[name] = _changed(checkpoints, step, new[name], origin)
    return flax.traverse_util.unflatten_dict(made, sep="/"), origins


def _changed(checkpoints: Checkpoints, step: int, fresh: jax.Array, origin: Origin) -> jax.Array:
    """Returns a parameter of other layers or size; every process reads the whole of it."""
    theirs = checkpoints.restore_array(step, f"params/{origin.source}").astype(fresh.dtype)
    if origin.layers is not None:
        picked = theirs[list(origin.layers)]
        return jax.make_array_from_callback(fresh.shape, fresh.sharding, picked.__getitem__)
    part = tuple(slice(size) for size in theirs.shape)
    grow = jax.jit(
        lambda new, old: new.at[part].set(jnp.asarray(old)), out_shardings=fresh.sharding
    )
    return grow(fresh, theirs)


def as_table(origins: Mapping[str, Origin]) -> list[str]:
    """Returns a line for each parameter and where it comes from."""
    width = max(map(len, origins), default=0)
    return [f"  {name.ljust(width)}  {origin}" for name, origin in origins.items()]
