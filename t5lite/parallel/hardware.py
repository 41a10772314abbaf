"""Rates and memory of devices, by the device kind that JAX reports."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One device as JAX counts them; of chips with two cores, such as TPU7x, one core.

    Args:
        flops: dense bfloat16 FLOP/s.
        hbm_bytes: memory; None for GPUs, of which there are several sizes.
        ici_bytes_per_second: send rate of all links to neighbours in the slice together; None if it
            has none, or the rate is unknown.
        dcn_bytes_per_second: send rate to other slices.
    """

    flops: float
    hbm_bytes: float | None = None
    ici_bytes_per_second: float | None = None
    dcn_bytes_per_second: float | None = None


GIB = 2.0**30

# Rates are from NVIDIA's data sheets and cloud.google.com/tpu/docs. TPU links are counted in one
# direction: 4 links of 45 or 90 GB/s on a torus of two dimensions, 6 on one of three.
DEVICES = {
    "NVIDIA A100": Device(flops=312e12),
    "NVIDIA H100": Device(flops=989.4e12),
    "NVIDIA H100 PCIe": Device(flops=756e12),
    "NVIDIA H200": Device(flops=989.4e12),
    "TPU v4": Device(
        flops=275e12,
        hbm_bytes=32 * GIB,
        ici_bytes_per_second=6 * 45e9,
        dcn_bytes_per_second=6.25e9,
    ),
    "TPU v5": Device(
        flops=459e12,
        hbm_bytes=95 * GIB,
        ici_bytes_per_second=6 * 90e9,
        dcn_bytes_per_second=6.25e9,
    ),
    "TPU v5 lite": Device(
        flops=197e12,
        hbm_bytes=16 * GIB,
        ici_bytes_per_second=4 * 45e9,
        dcn_bytes_per_second=3.1e9,
    ),
    "TPU v6 lite": Device(
        flops=918e12,
        hbm_bytes=32 * GIB,
        ici_bytes_per_second=4 * 90e9,
        dcn_bytes_per_second=12.5e9,
    ),
    "TPU7x": Device(
        flops=1153.5e12,
        hbm_bytes=96 * GIB,
        ici_bytes_per_second=3 * 100e9,
        dcn_bytes_per_second=6.25e9,
    ),
}


def device_of(kind: str) -> Device | None:
    """Returns rates and memory of a device kind; None if they are unknown, as for CPUs.

    A kind of NVIDIA may end in a form factor; the longest matching name applies.

    >>> device_of("NVIDIA H100 80GB HBM3").flops, device_of("TPU v5 lite").flops, device_of("cpu")
    (989400000000000.0, 197000000000000.0, None)
    """
    fitting = [
        name
        for name in DEVICES
        if kind == name or (name.startswith("NVIDIA") and kind.startswith(name))
    ]
    return DEVICES[max(fitting, key=len)] if fitting else None
