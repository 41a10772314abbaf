"""t5lite trains, fine-tunes and evaluates T5-style language models in JAX, from gin files."""

__version__ = "0.1.0"
