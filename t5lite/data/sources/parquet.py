"""Records of Parquet files, row group by row group."""

import contextlib
from collections.abc import Iterator
from typing import Any

from t5lite.core.errors import UserError, shown
from t5lite.data.sources.files import Bad, Part, open_file


class _NotText:
    """A value of a type that has no text, such as a timestamp."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name


def num_row_groups(path: str) -> int:
    """Returns the number of row groups of a Parquet file.

    Raises:
        UserError: if it is not a Parquet file.
    """
    return int(_open(path).num_row_groups)


def read_rows(part: Part, fields: tuple[str, ...]) -> Iterator[dict[str, Any] | Bad]:
    """Yields the rows of a row group as Python values, with texts as bytes.

    Raises:
        UserError: if the file is not Parquet, or has no single column for a field.
    """
    import pyarrow

    file = _open(part.path)
    with _errors(part.path):
        names = file.schema_arrow.names
    for name in fields:
        if names.count(name) != 1:
            raise UserError(
                f"{part.path} must have one column {name!r} (FileSource.fields), got "
                f"{names.count(name)}; it has {', '.join(names)}"
            )
    types = {name: file.schema_arrow.field(name).type for name in fields}
    with _errors(part.path):
        if any(_has_type(type, pyarrow.types.is_dictionary) for type in types.values()):
            file = _open_without_schema(part.path)
        table = file.read_row_group(part.start, columns=list(fields))
        columns = {name: _values(table[name], types[name]) for name in fields}
    for number in range(table.num_rows):
        row = {name: values[number] for name, values in columns.items()}
        wrong = [(name, v) for name, v in row.items() if isinstance(v, _NotText)]
        if wrong:
            name, value = wrong[0]
            reason = f"field {name!r} is of type {value.type_name}, which is not text"
            yield Bad(row_location(part, number), reason)
        else:
            yield row


def row_location(part: Part, number: int) -> str:
    """Returns the file, row group and row, for errors."""
    return f"{part.path}: row {number} of row group {part.start}"


def _values(column: Any, type: Any) -> list[Any]:
    """Returns the values of a column. One bad value does not make the others unreadable.

    Args:
        type: of the column as it was written.
    """
    import pyarrow

    if _has_type(type, pyarrow.types.is_temporal):
        # NOTE: pyarrow fails for some dates, and needs pandas for nanoseconds.
        return [None if null else _NotText(str(type)) for null in column.is_null().to_pylist()]
    # As bytes: pyarrow fails for a whole column if one of its texts is not UTF-8.
    values: list[Any] = column.cast(_binary_type(column.type)).to_pylist()
    return values


def _binary_type(type: Any) -> Any:
    """Returns the type with binary for string, at every level, and without dictionaries."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(type):
        return _binary_type(type.value_type)
    if types.is_string(type) or types.is_string_view(type):
        return pyarrow.binary()
    if types.is_large_string(type):
        return pyarrow.large_binary()
    if types.is_fixed_size_list(type):
        return pyarrow.list_(_binary_type(type.value_type), type.list_size)
    if types.is_large_list(type):
        return pyarrow.large_list(_binary_type(type.value_type))
    if types.is_list(type):
        return pyarrow.list_(_binary_type(type.value_type))
    if types.is_map(type):
        return pyarrow.map_(_binary_type(type.key_type), _binary_type(type.item_type))
    if types.is_struct(type):
        return pyarrow.struct([(field.name, _binary_type(field.type)) for field in type])
    return type


def _has_type(type: Any, is_type: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_dictionary(type):
        inner = [type.value_type]
    else:
        inner = [type.field(index).type for index in range(type.num_fields)]
    return bool(is_type(type)) or any(_has_type(each, is_type) for each in inner)


def _open(path: str) -> Any:
    import pyarrow.parquet

    with _errors(path):
        return pyarrow.parquet.ParquetFile(open_file(path))


def _open_without_schema(path: str) -> Any:
    """Opens a Parquet file without its stored Arrow schema, so that it has no dictionary types.

    pyarrow does not read a dictionary if one of its texts is not UTF-8.
    """
    import pyarrow.parquet

    with open_file(path) as file:
        # The file ends with the metadata, its length in 4 bytes, and b"PAR1".
        size = file.seek(-8, 2) + 8
        length = int.from_bytes(file.read(4), "little")
        file.seek(size - 8 - length)
        metadata = file.read(length).replace(b"ARROW:schema", b"arrow_schema")
    end = length.to_bytes(4, "little") + b"PAR1"
    patched = pyarrow.parquet.read_metadata(pyarrow.BufferReader(b"PAR1" + metadata + end))
    return pyarrow.parquet.ParquetFile(open_file(path), metadata=patched)


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    """Turns the errors of reading Parquet into a UserError on one line."""
    import pyarrow

    try:
        yield
    # UnicodeDecodeError: for the name of a column.
    except (pyarrow.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} must be Parquet: {shown(reason)}") from error
