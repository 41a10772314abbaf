"""Training: the choices of a run, its state, the pure step, the loop, checkpoints and writers."""
