"""Trials on Cloud TPU queued resources."""
