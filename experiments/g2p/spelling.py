"""A step for `Task.preprocessors`: letters as words, as phones are in the data."""


def spell(record: dict[str, str]) -> dict[str, str]:
    """Puts spaces between the letters of the field `word`."""
    return {**record, "word": " ".join(record["word"])}
