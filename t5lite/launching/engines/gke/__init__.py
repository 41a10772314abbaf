"""Trials as JobSets on TPU slices of a GKE cluster."""
