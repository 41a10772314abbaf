"""Evaluation of a split, scoring of given targets and generation, with trained parameters."""
