"""Costs of a compiled program on simulated devices: memory, FLOPs, network and time."""
