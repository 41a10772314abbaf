"""Sweeps: the search space, how its settings are chosen, the study and the sweep file."""
