"""Training: the run as a user describes it, the state, the pure step, and the loop around it."""
