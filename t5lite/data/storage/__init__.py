"""Data sets on disk: array_record files, shards, and how they are built."""
