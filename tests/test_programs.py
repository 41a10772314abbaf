"""The compiled programs that all processes of a run of pytest share."""

import jax
import jax.numpy as jnp
import pytest


@pytest.mark.proof
def test_a_program_that_another_process_is_writing_is_compiled_again(programs_dir, rng):
    number = float(rng.uniform())

    @jax.jit
    def half_written(x):
        return jnp.sin(x) + number

    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        half_written(1.0)
        written = list(programs_dir.glob("jit_half_written*"))
        assert written
        for path in written:
            path.write_bytes(path.read_bytes()[:100])
        jax.clear_caches()
        assert float(half_written(0.0)) == jnp.float32(number)
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
        for path in programs_dir.glob("jit_half_written*"):
            path.unlink()
