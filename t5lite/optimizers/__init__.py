"""Schedules and optimizers: optax transformations whose numbers are inputs of the step."""
