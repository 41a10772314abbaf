"""Meshes, remat policies and microbatches that are worth compiling, fastest first by estimate.

Estimates only order the candidates; reported costs are those of compiled programs.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping

from t5lite.core.errors import UserError
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
    batch_size: int,
    mesh: Mapping[str, int],
    params_bytes: float,
    optimizer_bytes: float,
    device: Device,
) -> list[Candidate]:
    """Returns candidates of powers of two that divide all sizes, the fastest by estimate first.

    Args:
        mesh: sizes of the run's axes; `dcn`, `expert` and `sequence` are kept.
        params_bytes, optimizer_bytes: total sizes.

    Raises:
        UserError: if there is none.
    """
    config = model.config
    fixed = mesh["expert"] * mesh["sequence"]
    num_devices = math.prod(mesh.values())
    per_slice = num_devices // mesh["dcn"] // fixed
    found = []
    for tensor, fsdp in itertools.product(_powers_that_divide(per_slice), repeat=2):
        shares = (config.num_heads, config.kv_heads, config.mlp_dim, config.vocab_size)
        if per_slice % (tensor * fsdp) or config.embed_dim % fsdp:
            continue
        if tensor > 16 or any(size % tensor for size in shares):
            continue
        rows = batch_size * tensor * mesh["sequence"] / num_devices
        for microbatches, remat in itertools.product(_powers_that_divide(batch_size), REMAT_COSTS):
            if (rows / microbatches) % 1:
                continue
            seconds, memory = _estimated(
                model,
                lengths,
                rows,
                tensor,
                fsdp,
                microbatches,
                remat,
                params_bytes=params_bytes,
                optimizer_bytes=optimizer_bytes,
                device=device,
            )
            sizes = {"data": -1, "fsdp": fsdp, "tensor": tensor}
            kept = {axis: mesh[axis] for axis in ("expert", "sequence")}
            found.append(
                Candidate(
                    mesh=sizes | kept,
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


def _estimated(
    model: Model,
    lengths: Mapping[str, int],
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
    inputs, targets = (lengths.get(f"{side}_input_tokens", 0) for side in ("encoder", "decoder"))
    at_once = rows / microbatches
    widths = (
        config.embed_dim,
        config.num_heads * config.head_dim / tensor,
        config.mlp_dim / tensor,
    )
    numbers = 0.0
    for layers, tokens in (
        (config.num_encoder_layers, inputs),
        (config.num_decoder_layers, targets),
    ):
        of_token = sum(n * width for n, width in zip(stored, widths, strict=False))
        of_token += stored[3] * 2 * config.num_heads / tensor * (tokens + 0.5 * inputs)
        numbers += layers * tokens * at_once * of_token
    logits = 3 * 4 * at_once * (targets or inputs) * config.vocab_size / tensor
    # Gradients are as large as the parameters.
    kept_bytes = (2 * params_bytes + optimizer_bytes) / (fsdp * tensor)
    memory = kept_bytes + 2 * numbers + logits

    flops = rows * train_flops(model, lengths) * (1 + recomputed / 3) / tensor
    # A guess: small products use a device less well, which limits the number of microbatches.
    compute = flops / device.flops * (1 + 0.02 * math.log2(microbatches) + 1 / max(at_once, 1) / 8)
    gathered = (3 * params_bytes / 2 * microbatches if fsdp > 1 else 0) / tensor
    reduced = params_bytes / tensor * (2 if fsdp == 1 else 1)
    passed = inputs * config.num_encoder_layers + 1.5 * targets * config.num_decoder_layers
    across = 8 * 2 * rows * passed * config.embed_dim * (tensor - 1) / tensor
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
