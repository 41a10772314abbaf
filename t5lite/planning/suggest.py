"""Meshes, remat policies and microbatches that are worth compiling, fastest first by estimate.

Estimates only order the candidates; reported costs are those of compiled programs.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping

from t5lite.core.errors import UserError
from t5lite.models.config import T5Config
from t5lite.models.flops import train_flops
from t5lite.models.model import Model
from t5lite.parallel.hardware import Device

# For each policy: forward passes that are recomputed, and activations that are stored for each
# token and layer, in units of (model width, inner width of attention, feed-forward width,
# attention weights).
REMAT_COSTS = {
    "none": (0.0, (8, 5, 4, 3)),
    "attention": (0.15, (8, 5, 4, 0)),
    "minimal": (0.2, (3, 4, 2, 0)),
    "full": (1.0, (1, 0, 0, 0)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A choice of all that `plan --suggest` varies, with its estimates.

    Args:
        mesh: sizes of all axes but `dcn`; `data` takes the remaining devices.
        seconds, bytes: estimates of a step, on one device.
    """

    mesh: Mapping[str, int]
    remat: str
    microbatches: int
    seconds: float
    bytes: float

    @property
    def bindings(self) -> list[str]:
        """Bindings of the choice, without `--gin.`."""
        sizes = [f"Mesh.{axis}={size}" for axis, size in self.mesh.items()]
        return [
            *sizes,
            f"T5Config.remat={self.remat}",
            f"train.microbatches={self.microbatches}",
        ]


def candidates(
    model: Model,
    lengths: Mapping[str, int],
    *,
    trained: Collection[str] | None = None,
    batch_size: int,
    mesh: Mapping[str, int],
    params_bytes: float,
    optimizer_bytes: float,
    device: Device,
    frozen_bytes: float = 0.0,
    frozen_flops: int = 0,
) -> list[Candidate]:
    """Returns candidates of powers of two that divide all sizes, the fastest by estimate first.

    Args:
        trained: names of the parameters that train; None for all.
        mesh: sizes of the run's axes; `dcn`, `expert` and `sequence` are kept.
        params_bytes, optimizer_bytes: total sizes.
        frozen_bytes, frozen_flops: of models that do not train: their parameters, and a row.

    Raises:
        UserError: if there is none.
    """
    sizes = split_sizes(model.config)
    fixed = mesh["expert"] * mesh["sequence"]
    num_devices = math.prod(mesh.values())
    per_slice = num_devices // mesh["dcn"] // fixed
    found = []
    for tensor, fsdp in itertools.product(_powers_that_divide(per_slice), repeat=2):
        if per_slice % (tensor * fsdp) or any(size % fsdp for size in sizes["fsdp"]):
            continue
        if tensor > 16 or any(size % tensor for size in sizes["tensor"]):
            continue
        rows = batch_size * tensor * mesh["sequence"] / num_devices
        for microbatches, remat in itertools.product(_powers_that_divide(batch_size), REMAT_COSTS):
            if (rows / microbatches) % 1:
                continue
            seconds, memory = _estimated(
                model,
                lengths,
                train_flops(model, lengths, trained) + frozen_flops,
                rows,
                tensor,
                fsdp,
                microbatches,
                remat,
                params_bytes=params_bytes,
                optimizer_bytes=optimizer_bytes,
                device=device,
            )
            memory += frozen_bytes / (fsdp * tensor)
            searched = {"data": -1, "fsdp": fsdp, "tensor": tensor}
            kept = {axis: mesh[axis] for axis in ("expert", "sequence")}
            found.append(
                Candidate(
                    mesh=searched | kept,
                    remat=remat,
                    microbatches=microbatches,
                    seconds=seconds,
                    bytes=memory,
                )
            )
    if not found:
        raise UserError(
            f"--suggest: no mesh of {num_devices} devices divides a batch of {batch_size} rows and "
            "the model; choose another batch size"
        )
    return sorted(found, key=lambda candidate: (candidate.seconds, candidate.bytes))


def split_sizes(config: T5Config) -> dict[str, set[int]]:
    """Returns the sizes of parameters that each mesh axis splits, in both stacks."""
    encoder = config.encoder_config()
    stacks = (encoder, config) if config.num_encoder_layers else (config,)
    return {
        "fsdp": {stack.embed_dim for stack in stacks},
        "tensor": {
            size
            for stack in stacks
            for size in (stack.num_heads, stack.kv_heads, stack.mlp_dim, stack.vocab_size)
        },
    }


def _estimated(
    model: Model,
    lengths: Mapping[str, int],
    flops_per_row: int,
    rows: float,
    tensor: int,
    fsdp: int,
    microbatches: int,
    remat: str,
    *,
    params_bytes: float,
    optimizer_bytes: float,
    device: Device,
) -> tuple[float, float]:
    """Estimates the seconds of a step and the bytes on a device."""
    config = model.config
    recomputed, stored = REMAT_COSTS[remat]
    inputs = lengths.get("encoder_input_tokens", 0)
    # The decoder of a classifier reads the inputs.
    targets = lengths.get("decoder_input_tokens", inputs)
    at_once = rows / microbatches
    numbers = 0.0
    passed = 0.0
    for stack, layers, tokens, sublayers in (
        (config.encoder_config(), config.num_encoder_layers, inputs, 1.0),
        (config, config.num_decoder_layers, targets, 1.5 if config.has_cross_attention else 1.0),
    ):
        widths = (
            stack.embed_dim,
            stack.num_heads * stack.head_dim / tensor,
            stack.mlp_dim / tensor,
        )
        of_token = sum(n * width for n, width in zip(stored, widths, strict=False))
        of_token += stored[3] * 2 * stack.num_heads / tensor * (tokens + 0.5 * inputs)
        numbers += layers * tokens * at_once * of_token
        passed += layers * tokens * sublayers * stack.embed_dim
    logits = 3 * 4 * at_once * (targets or inputs) * config.vocab_size / tensor
    # Gradients are as large as the parameters.
    kept_bytes = (2 * params_bytes + optimizer_bytes) / (fsdp * tensor)
    memory = kept_bytes + 2 * numbers + logits

    flops = rows * flops_per_row * (1 + recomputed / 3) / tensor
    # A guess: small products use a device less well, which limits the number of microbatches.
    compute = flops / device.flops * (1 + 0.02 * math.log2(microbatches) + 1 / max(at_once, 1) / 8)
    gathered = (3 * params_bytes / 2 * microbatches if fsdp > 1 else 0) / tensor
    reduced = params_bytes / tensor * (2 if fsdp == 1 else 1)
    across = 8 * 2 * rows * passed * (tensor - 1) / tensor
    ici = device.ici_bytes_per_second or math.inf
    return max(compute, (gathered + reduced + across) / ici) + 0.1 * across / ici, memory


def take_candidate(left: list[Candidate], device: Device, factor: float) -> Candidate:
    """Removes and returns the fastest candidate that fits, or the smallest if none does.

    Args:
        factor: ratio of needed and estimated memory.
    """
    fitting = [c for c in left if c.bytes * factor <= (device.hbm_bytes or math.inf)]
    candidate = fitting[0] if fitting else min(left, key=lambda c: c.bytes)
    left.remove(candidate)
    return candidate


def _powers_that_divide(number: int) -> list[int]:
    return [2**n for n in range(number.bit_length()) if number % 2**n == 0]
