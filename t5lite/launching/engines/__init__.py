"""Engines: where the trials of a launch run. `engine` holds the protocol, `table` the names."""
