"""From files to batches. Models are unknown here; objectives arrive as arguments.

The path of a record:

    sources/      a row of a file, or an example of TFDS  -> a record: its fields as text
      storage/      records are built into array_record shards, to be read by number
    text/         preprocessors -> the changed record; templates -> texts; a vocabulary -> token ids
    tokens.py     the records of a task as token ids, encoded on the fly or from a cache
    batching/     readers: an objective makes examples -> row_stream, packing: rows -> features:
                  arrays -> stream: batches, with the cursors to resume from

`task.py` and `mixture.py` say what is learned, `questions.py` and `metrics.py` how it is evaluated,
and `statistics.py` and `unknown_pieces.py` count what is in the data.
"""
