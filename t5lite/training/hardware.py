"""Peak rates of accelerators, for model FLOPs utilisation (MFU)."""

# Dense bf16 FLOP/s of one device as JAX counts devices, from the makers' data sheets, by
# jax.Device.device_kind; NVIDIA's may go on with the form factor, and the longest fit is meant.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
    "TPU v4": 275e12,
    "TPU v5": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak FLOP/s of one device, or None where none is known, as for CPUs.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("TPU v5 lite"), peak_flops("cpu")
    (989400000000000.0, 197000000000000.0, None)
    """
    fitting = [
        kind
        for kind in PEAK_FLOPS
        if device_kind == kind or (kind.startswith("NVIDIA") and device_kind.startswith(kind))
    ]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None
