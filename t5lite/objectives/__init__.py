"""Training objectives: they turn token ids into inputs and targets. NumPy only, seeded.

An objective is a frozen dataclass that implements `core.examples.Objective`.
"""
