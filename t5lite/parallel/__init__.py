"""Sharding: the mesh, rules from logical axes to mesh axes, and global arrays of batches."""
