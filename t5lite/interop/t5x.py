"""Checkpoints of T5X: msgpack that holds the arrays or names zarr directories, and Orbax.

T5X stores no configuration in a checkpoint: sizes are inferred from the arrays.

Source: google-research/t5x@main:t5x/checkpoints.py and adafactor.py, google/flaxformer@main.
"""

import pathlib
import re

import numpy as np

from t5lite.core.errors import UserError, shown
from t5lite.interop.finite import finite_stored
from t5lite.interop.foreign import (
    Foreign,
    StoredArray,
    check_names,
)
from t5lite.interop.t5x_adafactor import adafactor_state
from t5lite.interop.t5x_files import stored_arrays
from t5lite.interop.t5x_parameters import Arrays, T5xParameter
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.config import T5Config
from t5lite.models.model import Model, parameters

# Flaxformer's leaf about the format, beside parameters.
METADATA = "__save_format_metadata__"
FUSED = re.compile(r"/(qkv_fused|kv_fused|wi_fused|q_wi_fused|o_wo_fused)/")


def read_t5x(
    path: pathlib.Path,
    *,
    optimizer_state: bool = False,
    mlp_activations: tuple[str, ...] | None = None,
    encoder_attention: str | None = None,
    allow_nonfinite: bool = False,
) -> Foreign:
    """Returns the checkpoint in a folder `checkpoint_STEP`, or in a single msgpack file.

    Args:
        optimizer_state: whether Adafactor's state is read too.
        mlp_activations: not determined by the arrays; None for ("gelu", "linear") if there are two
            widening kernels, and ("relu",) if there is one.
        encoder_attention: None for "transient_global" if the arrays have its parameters, else
            "full"; the arrays do not distinguish "local" from "full".
        allow_nonfinite: whether parameters may be NaN or infinite; otherwise reading one of them
            raises a UserError that names the array and the index.

    Raises:
        UserError: if a file is missing or damaged, or the arrays are not those of a T5.
    """
    owner = str(path)
    tree = stored_arrays(path)
    arrays = {name: stored for name, stored in tree.items() if METADATA not in name}
    if not allow_nonfinite:
        arrays = finite_stored(arrays, owner)
    params = _below("target", arrays)
    if not params:
        raise UserError(
            f"{owner} must hold parameters under 'target', as T5X's checkpoints do; got none"
        )
    if fused := next((name for name in params if FUSED.search(f"/{name}")), None):
        raise UserError(
            f"{owner} holds {shown(fused)}: fused kernels of Flaxformer are not supported"
        )
    model = _model_of(params, owner, mlp_activations, encoder_attention)
    made = {name: T5xParameter(name, box, params) for name, box in parameters(model).items()}
    check_names(owner, [n for parameter in made.values() for n in parameter.names], list(params))
    for parameter in made.values():
        parameter.check(owner)
    step = _step(owner, arrays["state/step"]) if "state/step" in arrays else 0
    state = None
    if optimizer_state:
        if "state/step" not in arrays:
            raise UserError(
                f"{owner} must hold state/step, which Adafactor's decay depends on; got none"
            )
        slots = _below("state/param_states", arrays)
        state = adafactor_state(owner, made, slots, step)
    return Foreign(
        model=model,
        params={name: parameter.array(params) for name, parameter in made.items()},
        step=step,
        opt_state=state,
        remarks=(_remark(model.config),),
    )


def _step(owner: str, stored: StoredArray) -> int:
    value = stored.read(...)
    if value.shape != () or value.dtype.kind not in "iu" or not 0 <= value < 2**31:
        raise UserError(f"{owner}: state/step must be a whole number in [0, 2**31), got {value}")
    return int(value)


def _remark(config: T5Config) -> str:
    return (
        "sizes are inferred from the arrays; mlp_activations "
        f"{config.mlp_activations}, encoder_attention {config.encoder_attention!r} and T5Config's "
        "defaults of max_distance, norm_epsilon, local_radius and global_block_size are assumed"
    )


def _below(prefix: str, arrays: Arrays) -> dict[str, StoredArray]:
    start = f"{prefix}/"
    return {n.removeprefix(start): stored for n, stored in arrays.items() if n.startswith(start)}


def _model_of(
    params: Arrays, owner: str, mlp: tuple[str, ...] | None, attention: str | None
) -> Model:
    """Returns the model with the sizes of the arrays."""

    def find(pattern: str) -> tuple[str, StoredArray] | None:
        return next(((n, s) for n, s in params.items() if re.fullmatch(pattern, n)), None)

    def need(pattern: str) -> tuple[str, StoredArray]:
        if (found := find(pattern)) is None:
            raise UserError(
                f"{owner} must hold an array named like {pattern}, as every T5 does; got none"
            )
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
    num_heads = bias.shape[0]
    num_buckets = bias.shape[-1]
    query = need(r".*attention/query/kernel")[1]
    inner = int(np.prod(query.shape)) // embed_dim
    wide_name, wide = need(r".*mlp/(wi|wi_0)/kernel")
    is_scanned = find(r"(encoder/encoder|decoder/decoder)/.*") is not None
    if len(wide.shape) != 2 + is_scanned or len(query.shape) < 2:
        raise UserError(f"{owner}: {wide_name} must be a kernel of T5, got shape {wide.shape}")
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
