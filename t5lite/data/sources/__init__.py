"""Where records come from: files, formats and TFDS data sets."""
