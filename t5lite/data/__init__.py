"""From text to batches: vocabularies, sources, tasks, features and the stream of batches.

Nothing here knows of models; objectives come in as arguments.
"""
