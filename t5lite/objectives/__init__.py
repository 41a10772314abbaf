"""What a model is asked to predict: token ids in, inputs and targets out. NumPy only, seeded.

Each is a frozen dataclass that is a `core.examples.Objective`.
"""
