"""Trials on Cloud TPU slices, a queued resource each."""
