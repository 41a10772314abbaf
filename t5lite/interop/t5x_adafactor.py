"""T5X's state of Adafactor, for which it has slots by parameter, as the state of ours.

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
from t5lite.interop.t5x_places import Arrays, Place
from t5lite.optimizers.adafactor import Factored, adafactor

# Of Adafactor, for each parameter; those not in use have the shape (1,).
_SLOTS = ("v_row", "v_col", "v", "m")


def adafactor_state(
    owner: str, made: Mapping[str, Place], slots: Arrays, step: int
) -> dict[str, LazyArray]:
    """Returns the state of `adafactor` by the names that its leaves have.

    Args:
        owner: the checkpoint, for messages.
        made: where T5X keeps each parameter, and what it keeps for it.
        slots: what is below `state/param_states`.
        step: steps taken.

    Raises:
        UserError: where it is not Adafactor's, or not that of these parameters.
    """
    if not any(name.endswith("/v_row") for name in slots):
        raise UserError(f"{owner} holds no state of Adafactor, which alone is read")
    flat = {name: jax.ShapeDtypeStruct(place.shape, np.float32) for name, place in made.items()}
    tree = flax.traverse_util.unflatten_dict(flat, sep="/")
    axes = flax.traverse_util.unflatten_dict({n: p.axes for n, p in made.items()}, sep="/")
    moments = jax.eval_shape(adafactor(1.0, param_axes=axes).init, tree).second_moment
    moments = flax.traverse_util.flatten_dict(moments, sep="/")
    known = [f"{n}/{slot}" for place in made.values() for n in place.names for slot in _SLOTS]
    check_names(f"{owner}: state/param_states", known, list(slots))
    state = {"step": _constant(np.asarray(step, np.int32))}
    momenta: dict[str, LazyArray] = {}
    for name, place in made.items():
        parts = {slot: {n: slots[f"{n}/{slot}"] for n in place.names} for slot in _SLOTS}
        is_factored = parts["v_row"][place.names[0]].shape != (1,)
        if is_factored != isinstance(moments[name], Factored):
            kinds = {True: "factored", False: "whole"}
            raise UserError(
                f"{owner}: Adafactor's second moment of {place.names[0]} must be "
                f"{kinds[not is_factored]}, as it is here for this shape, got one that is "
                f"{kinds[is_factored]}"
            )
        prefix = f"second_moment/{name}"
        if is_factored:
            for slot, moment in _factors(owner, place, parts, moments[name]).items():
                state[f"{prefix}/{slot}"] = moment
        else:
            place.check_like(f"{owner}: state/param_states, v", parts["v"])
            state[prefix] = place.array(parts["v"])
        if parts["m"][place.names[0]].shape != (1,):
            place.check_like(f"{owner}: state/param_states, m", parts["m"])
            momenta[f"momentum/{name}"] = place.array(parts["m"])
    return state | momenta


def _factors(
    owner: str, place: Place, parts: Mapping[str, Arrays], factored: Factored
) -> dict[str, LazyArray]:
    """Returns row and column moments, which T5X has without the dimensions of length 1.

    Of a matrix v_row is the shorter of the two, or where both are of one length that of the first
    dimension. Of an array of more dimensions it is what the rows, the dimension `embed`, have.
    """
    order = [axis for axis in place.axes if axis != "layers"]
    lengths = matrix_shape(place.name, place.layer_shape)
    first_is_embed = order[0] == "embed"
    v_row_is_first = lengths[0] <= lengths[1]
    is_matrix = (
        len(parts["v_row"][place.names[0]].shape + parts["v_col"][place.names[0]].shape) == 2
    )
    row_slot = "v_col" if is_matrix and first_is_embed != v_row_is_first else "v_row"
    made = {}
    column_slot = "v_row" if row_slot == "v_col" else "v_col"
    per_layer = is_stacked(place.name) and not place.is_scanned
    for field, slot in (("row", row_slot), ("column", column_slot)):
        shape = tuple(getattr(factored, field).shape)
        kept = [a for a in order if (a == "embed") == (field == "row")]
        # Among the axes that are left, T5X's layers stand second, or first before a lone row.
        at = 0
        if place.is_scanned:
            theirs = [order[0], "layers", *order[1:]]
            at = [a for a in theirs if a == "layers" or a in kept].index("layers")

        stored = [parts[slot][name] for name in place.names]
        size = math.prod(shape[1:] if per_layer else shape)
        if wrong := [s.shape for s in stored if math.prod(s.shape) != size]:
            raise UserError(
                f"{owner}: state/param_states/{place.names[0]}/{slot} must have {size} numbers, "
                f"got shape {wrong[0]}"
            )
        made[field] = place.like(shape, stored, layers_at=at)
    return made


def _constant(value: np.ndarray) -> LazyArray:
    return LazyArray(value.shape, value.dtype, lambda: value)
