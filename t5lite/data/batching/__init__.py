"""From examples to batches: row streams, packing and features."""
