"""Data sets on disk: array_record files, shards, and building them."""
