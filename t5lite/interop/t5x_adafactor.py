"""T5X's Adafactor state, which has slots for each parameter, as the state of `adafactor`.

Source: google-research/t5x@main:t5x/adafactor.py.
"""

import math
from collections.abc import Mapping

import flax.traverse_util
import jax
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.interop.foreign import check_names, is_stacked, matrix_shape
from t5lite.interop.t5x_parameters import Arrays, T5xParameter
from t5lite.optimizers.adafactor import Factored, adafactor

# The slots of a parameter; unused ones have the shape (1,).
_SLOTS = ("v_row", "v_col", "v", "m")


def adafactor_state(
    owner: str, made: Mapping[str, T5xParameter], slots: Arrays, step: int
) -> dict[str, LazyArray]:
    """Returns the state of `adafactor` by the names of its leaves.

    Args:
        owner: the checkpoint, for messages.
        made: the parameters.
        slots: the arrays under `state/param_states`.
        step: training steps taken.

    Raises:
        UserError: if it is not Adafactor's state, or not that of these parameters.
    """
    if not any(name.endswith("/v_row") for name in slots):
        raise UserError(
            f"{owner} must hold Adafactor's state, the only one that is converted; got none"
        )
    flat = {name: jax.ShapeDtypeStruct(param.shape, np.float32) for name, param in made.items()}
    tree = flax.traverse_util.unflatten_dict(flat, sep="/")
    axes = flax.traverse_util.unflatten_dict({n: p.axes for n, p in made.items()}, sep="/")
    moments = jax.eval_shape(adafactor(1.0, param_axes=axes).init, tree).second_moment
    moments = flax.traverse_util.flatten_dict(moments, sep="/")
    known = [f"{n}/{slot}" for param in made.values() for n in param.names for slot in _SLOTS]
    check_names(f"{owner}: state/param_states", known, list(slots))
    state = {"step": _constant(np.asarray(step, np.int32))}
    momenta: dict[str, LazyArray] = {}
    for name, param in made.items():
        parts = {slot: {n: slots[f"{n}/{slot}"] for n in param.names} for slot in _SLOTS}
        is_factored = parts["v_row"][param.names[0]].shape != (1,)
        if is_factored != isinstance(moments[name], Factored):
            kinds = {True: "factored", False: "whole"}
            raise UserError(
                f"{owner}: Adafactor's second moment of {param.names[0]} must be "
                f"{kinds[not is_factored]}, as it is here for this shape, got one that is "
                f"{kinds[is_factored]}"
            )
        prefix = f"second_moment/{name}"
        if is_factored:
            for slot, moment in _factors(owner, param, parts, moments[name]).items():
                state[f"{prefix}/{slot}"] = moment
        else:
            param.check_like(f"{owner}: state/param_states, v", parts["v"])
            state[prefix] = param.array(parts["v"])
        if parts["m"][param.names[0]].shape != (1,):
            param.check_like(f"{owner}: state/param_states, m", parts["m"])
            momenta[f"momentum/{name}"] = param.array(parts["m"])
    return state | momenta


def _factors(
    owner: str, param: T5xParameter, parts: Mapping[str, Arrays], factored: Factored
) -> dict[str, LazyArray]:
    """Returns row and column moments, which T5X stores without dimensions of length 1.

    The v_row of a matrix is the shorter of the two, or the first dimension's if both have the same
    length. That of an array with more dimensions is the moment of the rows, dimension `embed`.
    """
    order = [axis for axis in param.axes if axis != "layers"]
    lengths = matrix_shape(param.name, param.layer_shape)
    first_is_embed = order[0] == "embed"
    v_row_is_first = lengths[0] <= lengths[1]
    is_matrix = (
        len(parts["v_row"][param.names[0]].shape + parts["v_col"][param.names[0]].shape) == 2
    )
    row_slot = "v_col" if is_matrix and first_is_embed != v_row_is_first else "v_row"
    made = {}
    column_slot = "v_row" if row_slot == "v_col" else "v_col"
    per_layer = is_stacked(param.name) and not param.is_scanned
    for field, slot in (("row", row_slot), ("column", column_slot)):
        shape = tuple(getattr(factored, field).shape)
        kept = [a for a in order if (a == "embed") == (field == "row")]
        # Among the axes that are kept, T5X's layers are the second, or the first before a lone row.
        at = 0
        if param.is_scanned:
            theirs = [order[0], "layers", *order[1:]]
            at = [a for a in theirs if a == "layers" or a in kept].index("layers")

        stored = [parts[slot][name] for name in param.names]
        size = math.prod(shape[1:] if per_layer else shape)
        if wrong := [s.shape for s in stored if math.prod(s.shape) != size]:
            raise UserError(
                f"{owner}: state/param_states/{param.names[0]}/{slot} must have {size} numbers, "
                f"got shape {wrong[0]}"
            )
        made[field] = param.like(shape, stored, layers_at=at)
    return made


def _constant(value: np.ndarray) -> LazyArray:
    return LazyArray(value.shape, value.dtype, lambda: value)
