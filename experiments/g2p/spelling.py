"""A preprocessor for `Task.preprocessors`: separates letters by spaces, like the phones."""


def spell(record: dict[str, str]) -> dict[str, str]:
    """Puts spaces between the letters of the field `word`."""
    return {**record, "word": " ".join(record["word"])}
