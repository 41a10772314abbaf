"""Reads and writes checkpoints of other programs: Hugging Face transformers and T5X.

A checkpoint becomes a `Foreign`: a model, and its parameters by t5lite name as `LazyArray`s that
are read when they are used. Only T5X's single msgpack file is read as a whole. Nothing is
unpickled. A family of Hugging Face models is one file and one row of `families.FAMILIES`.
"""
