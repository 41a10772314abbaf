"""Checkpoints of T5X: msgpack with arrays in it or beside it as zarr, and Orbax.

T5X keeps no configuration with a checkpoint: sizes are read off the arrays.

Source: google-research/t5x@main:t5x/checkpoints.py and adafactor.py, google/flaxformer@main.
"""

import math
import pathlib
import re
from collections.abc import Mapping

import flax.traverse_util
import jax
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.interop.foreign import (
    Foreign,
    Shape,
    Stored,
    check_array,
    check_names,
    gathered,
    is_stacked,
    matrix_shape,
)
from t5lite.interop.t5x_files import stored_arrays
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly, Model, parameters
from t5lite.models.config import T5Config
from t5lite.models.initializers import Parameter
from t5lite.optimizers.adafactor import Factored, adafactor

Arrays = Mapping[str, Stored]
# Of Adafactor, for each parameter; those not in use have the shape (1,).
_SLOTS = ("v_row", "v_col", "v", "m")
# Where T5X and Flaxformer name a parameter otherwise.
RENAMED = {"global_layer_norm": "attention/T5LayerNorm_0"}
# Flaxformer's note on the format, next to parameters.
METADATA = "__save_format_metadata__"
FUSED = re.compile(r"/(qkv_fused|kv_fused|wi_fused|q_wi_fused|o_wo_fused)/")


def read(
    path: pathlib.Path,
    *,
    optimizer_state: bool = False,
    mlp_activations: tuple[str, ...] | None = None,
    encoder_attention: str | None = None,
) -> Foreign:
    """Returns the checkpoint in a folder `checkpoint_STEP`, or in a single msgpack file.

    Args:
        optimizer_state: whether Adafactor's is read too.
        mlp_activations: what arrays do not tell; None for ("gelu", "linear") where there are two
            widening kernels, and ("relu",) where there is one.
        encoder_attention: None for "transient_global" where it has parameters of its own, and
            "full"; "local" cannot be told from "full".

    Raises:
        UserError: where a file is missing or damaged, or arrays are not those of a T5.
    """
    owner, tree = str(path), stored_arrays(path)
    arrays = {name: stored for name, stored in tree.items() if METADATA not in name}
    params = _below("target", arrays)
    if not params:
        raise UserError(f"{owner} holds no parameters: a checkpoint of T5X has them below 'target'")
    if fused := next((name for name in params if FUSED.search(f"/{name}")), None):
        raise UserError(f"{owner} holds {fused}: fused kernels of Flaxformer are not read")
    model = _model_of(params, owner, mlp_activations, encoder_attention)
    made = {name: Place(name, box, params) for name, box in parameters(model).items()}
    check_names(owner, [n for place in made.values() for n in place.names], list(params))
    for place in made.values():
        place.check(owner)
    step = int(arrays["state/step"].read(...)) if "state/step" in arrays else 0
    state = None
    if optimizer_state:
        if "state/step" not in arrays:
            raise UserError(f"{owner} lacks state/step, by which Adafactor's decay goes")
        slots = _below("state/param_states", arrays)
        state = _opt_state(owner, model, made, slots, step)
    return Foreign(
        model=model,
        params={name: place.array(params) for name, place in made.items()},
        step=step,
        opt_state=state,
        remarks=(_remark(model.config),),
    )


def _remark(config: T5Config) -> str:
    return (
        f"sizes were read off the arrays; taken to have mlp_activations {config.mlp_activations}, "
        f"encoder_attention {config.encoder_attention!r} and T5Config's own max_distance, "
        "norm_epsilon, local_radius and global_block_size, which they do not tell"
    )


def _below(prefix: str, arrays: Arrays) -> dict[str, Stored]:
    start = f"{prefix}/"
    return {n.removeprefix(start): stored for n, stored in arrays.items() if n.startswith(start)}


class Place:
    """Where T5X keeps a parameter: in an array for each layer, or with scanned layers in one.

    Args:
        name: the parameter's.
        box: its shape and the names of its axes.
        arrays: what the checkpoint holds.
    """

    def __init__(self, name: str, box: Parameter, arrays: Arrays) -> None:
        self.name, self.shape, self.axes = name, tuple(box.value.shape), tuple(box.names)
        theirs = name
        for ours, other in RENAMED.items():
            theirs = theirs.replace(ours, other)
        stack = name.split("/")[0]
        scanned = theirs.replace("/layers/", f"/{stack}/")
        self.is_scanned = is_stacked(name) and scanned in arrays
        if self.is_scanned or not is_stacked(name):
            self.names = [scanned]
        else:
            self.names = [
                theirs.replace("/layers/", f"/layers_{layer}/") for layer in range(self.shape[0])
            ]
        self._arrays = arrays

    @property
    def layer_shape(self) -> Shape:
        """The shape of one layer's part."""
        return self.shape[1:] if is_stacked(self.name) else self.shape

    def check(self, owner: str) -> None:
        """Raises a UserError where an array has another shape; heads may be joined or not."""
        self.check_like(owner, {name: self._arrays[name] for name in self.names})

    def check_like(self, owner: str, arrays: Arrays) -> None:
        """Raises a UserError where arrays of the parameter's names have other shapes than it."""
        whole = self._with_layers(self.layer_shape)
        matrix = self._with_layers(matrix_shape(self.name, self.layer_shape))
        for name in self.names:
            fits = whole if arrays[name].shape == whole else matrix
            check_array(owner, name, fits, arrays[name])

    def array(self, arrays: Arrays) -> LazyArray:
        """Returns the parameter, or something of its shape, from arrays of these names."""
        return self.like(self.shape, [arrays[name] for name in self.names], layers_at=1)

    def like(self, shape: Shape, parts: list[Stored], *, layers_at: int) -> LazyArray:
        """Returns an array of `shape` from parts that are stored as the parameter is.

        Args:
            layers_at: the dimension that the layers are in a part, where they are scanned.
        """
        stored = parts[0].shape
        rest = (*stored[:layers_at], *stored[layers_at + 1 :])

        def as_stored(part: np.ndarray) -> np.ndarray:
            if self.is_scanned:
                return np.moveaxis(part.reshape(part.shape[0], *rest), 0, layers_at)
            return part.reshape(stored)

        per_layer = is_stacked(self.name) and not self.is_scanned
        return gathered(shape, parts, as_stored, per_layer=per_layer)

    def _with_layers(self, shape: Shape) -> Shape:
        """T5X stacks scanned layers along the second dimension."""
        return (shape[0], self.shape[0], *shape[1:]) if self.is_scanned else shape


def _model_of(
    params: Arrays, owner: str, mlp: tuple[str, ...] | None, attention: str | None
) -> Model:
    """Returns the model whose sizes the arrays have."""

    def find(pattern: str) -> tuple[str, Stored] | None:
        return next(((n, s) for n, s in params.items() if re.fullmatch(pattern, n)), None)

    def need(pattern: str) -> tuple[str, Stored]:
        if (found := find(pattern)) is None:
            raise UserError(f"{owner} must hold an array named like {pattern}, as T5 has; got none")
        return found

    def layers(stack: str) -> int:
        numbers = [int(m[1]) for n in params if (m := re.match(rf"{stack}/layers_(\d+)/", n))]
        scanned = find(rf"{stack}/{stack}/pre_mlp_layer_norm/scale")
        return scanned[1].shape[1] if scanned else max(numbers, default=-1) + 1

    for pattern in ("token_embedder/embedding", r".*relpos_bias/rel_embedding"):
        name, stored = need(pattern)
        if len(stored.shape) < 2 or 0 in stored.shape:
            raise UserError(f"{owner}: {name} must have two dimensions, got {stored.shape}")
    vocab_size, embed_dim = need("token_embedder/embedding")[1].shape[:2]
    bias_name, bias = need(r".*relpos_bias/rel_embedding")
    num_heads, num_buckets = bias.shape[0], bias.shape[-1]
    query = need(r".*attention/query/kernel")[1]
    inner = int(np.prod(query.shape)) // embed_dim
    wide_name, wide = need(r".*mlp/(wi|wi_0)/kernel")
    is_scanned = find(r"(encoder/encoder|decoder/decoder)/.*") is not None
    if len(wide.shape) != 2 + is_scanned or len(query.shape) < 2:
        raise UserError(f"{owner}: {wide_name} is no kernel of T5: its shape is {wide.shape}")
    stacked_by = wide.shape[1] if is_scanned else 1
    guess = ("relu",) if wide_name.endswith("/wi/kernel") else ("gelu", "linear")
    side = find("encoder/side_relpos_bias/rel_embedding")
    config = T5Config(
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        num_heads=num_heads,
        head_dim=inner // stacked_by // num_heads,
        mlp_dim=wide.shape[-1],
        num_encoder_layers=layers("encoder"),
        num_decoder_layers=layers("decoder"),
        mlp_activations=mlp or guess,
        positions="shared_bias" if bias_name.count("/") == 2 else "layer_bias",
        num_buckets=num_buckets,
        tied_logits=find("decoder/logits_dense/kernel") is None,
        encoder_attention=attention or ("transient_global" if side else "full"),
    )
    if not config.num_decoder_layers:
        return EncoderOnly(config)
    return EncoderDecoder(config) if config.num_encoder_layers else DecoderOnly(config)


def _opt_state(
    owner: str, model: Model, made: Mapping[str, Place], slots: Arrays, step: int
) -> dict[str, LazyArray]:
    """Returns the state of `adafactor` by the names that its leaves have."""
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
