"""From the fields of a record to token ids: preprocessors, templates and vocabularies."""
