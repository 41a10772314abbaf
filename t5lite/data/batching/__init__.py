"""From token ids to batches: reading examples, packing rows, laying them out, streaming them."""
