"""Checkpoints of other programs, in and out: Hugging Face's and T5X's.

A foreign checkpoint is read as a `Foreign`: a model, and every parameter as a `LazyArray` under
its t5lite name, read when it is needed. Only what T5X keeps in a single msgpack file is read as a
whole. Nothing is unpickled.
"""
