"""TSV files: the header line, and the fields of a row."""

import codecs
from collections.abc import Sequence

from t5lite.core.errors import UserError
from t5lite.data.sources.files import open_file, read_errors, read_line

# Characters around a name that make a header doubtful.
_AROUND_NAMES = "\"'# \t"


def header_of(path: str, fields: Sequence[str], header: bool | None) -> tuple[str, ...] | None:
    """Returns the column names in the first line of a TSV file, if that is a header.

    A header names every field once, in any order and case; it may name other columns.

    Args:
        header: `FileSource.header`.

    Returns:
        The name of each column, as in `fields` if it is one of them; None without a header.

    Raises:
        UserError: if `header` is True and the line does not name every field; or if `header` is
            None and the line names some fields, or names them with quotes or other characters.
    """
    if header is False:
        return None
    with read_errors(path), open_file(path) as file:
        line = read_line(file)
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode().rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    cells = text.split("\t")
    # Case matters only for fields that differ in nothing else.
    by_case = len({name.casefold() for name in fields}) < len(fields)
    names = {name if by_case else name.casefold(): name for name in fields}

    def field(cell: str) -> str:
        return names.get(cell if by_case else cell.casefold(), cell)

    columns = tuple(field(cell.strip()) for cell in cells)
    counts = [columns.count(name) for name in fields]
    if set(counts) == {1}:
        return columns
    if header:
        raise UserError(
            f"{path}:1: the first line must name the fields {', '.join(fields)} once each, got "
            f"{text[:200]!r}; correct it, or set FileSource.header=False if it is a record"
        )
    loosely = [field(cell.strip(_AROUND_NAMES)) for cell in cells]
    if any(name in loosely for name in fields) or _similar(loosely, fields):
        raise UserError(
            f"{path}:1: the first line names some of the fields {', '.join(fields)}, but is not "
            f"their header: {text[:200]!r}; correct it, or set FileSource.header=False if it is a "
            "record"
        )
    return None


def _similar(cells: Sequence[str], fields: Sequence[str]) -> bool:
    """Whether the cells are the fields up to case, plural and punctuation, as in `Input`."""

    def stem(name: str) -> str:
        return "".join(filter(str.isalnum, name.casefold())).removesuffix("s")

    return sorted(map(stem, cells)) == sorted(map(stem, fields))
