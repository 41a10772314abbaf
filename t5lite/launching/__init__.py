"""Launches: a command, or a sweep over its bindings, run by an engine on this machine or elsewhere.

Depends on `t5lite.core` only. Trials are `t5lite` commands, and what they report is read from their
run directories.
"""
