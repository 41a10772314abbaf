"""Sweeps: the search space, the study and the sweep file."""
