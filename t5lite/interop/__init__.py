"""Checkpoints of other programs, in and out: Hugging Face's and T5X's.

A foreign checkpoint is read as a `Foreign`: a model, and every parameter as a `LazyArray` under its
t5lite name. Nothing is unpickled, and no more than one parameter is in memory at a time.
"""
