"""Engines that run a command elsewhere, sweeps over its bindings, and reports on runs."""
