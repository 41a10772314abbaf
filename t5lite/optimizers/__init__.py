"""Schedules and optimizers: numbers that are inputs of the step, around optax transformations."""
