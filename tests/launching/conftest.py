import pytest


@pytest.fixture
def one_device(data_dir, programs_dir):
    """What a process of a cluster is told: one CPU device, and what others have made already."""
    return {
        "TFDS_DATA_DIR": data_dir,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(programs_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
