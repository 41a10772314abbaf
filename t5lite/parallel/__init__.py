"""Where arrays live: the mesh, rules from logical axes to its axes, and the placing of batches."""
