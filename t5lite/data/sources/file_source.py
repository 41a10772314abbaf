"""Files as a source: each split is built into a data set when it is first used."""

import collections
import dataclasses
import functools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, suggestion
from t5lite.core.fields import check_field_choice, field_error, field_name
from t5lite.data.sources.files import find_files
from t5lite.data.sources.formats import FORMATS
from t5lite.data.sources.records import Records, TfdsRecords, instructions_of
from t5lite.data.sources.split_builds import SplitBuild, splits_of, text_features
from t5lite.data.storage.building import DEFAULT_OPTIONS, BuildOptions, build_shards
from t5lite.data.storage.shards import add, check_bad, summaries_of, summary_text

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource:
    """Files of text, JSONL, TSV or Parquet; a split is built into a data set when it is first used.

    A data set belongs to one split: its files, their times, and the fields below. The order of the
    splits does not matter, and a new split does not rebuild the others.

    Args:
        files: for each split a path, a pattern with wildcards, or a list of them. Compressed files
            (.gz, .bz2, .xz) and addresses of fsspec are accepted.
        fields: the fields to keep; for TSV without a header, the names of all columns in order.
        format: "lines" (a record per line), "document" (a record per file), "jsonl", "tsv" or
            "parquet"; None for the format that the file names imply.
        header: for TSV, whether the first line names the columns; None to take it as a header if it
            names all fields, in any order and case.
        folder: the folder of relative paths.
        max_bytes: longer records of a single field are split, at the end of a line if possible.
        max_errors: rows of a split that may be left out because they cannot be read.
        data_dir: as in `TfdsSource`.

    Raises:
        UserError: for an unknown format, or numbers out of range.
    """

    files: Mapping[str, Any]
    fields: Sequence[str] = ("text",)
    format: str | None = None
    header: bool | None = None
    folder: str = "."
    max_bytes: int = 65536
    max_errors: int = 0
    data_dir: str | None = None

    def __post_init__(self) -> None:
        if self.format is not None:
            check_field_choice(self, "format", FORMATS)
        if self.header is not None and not isinstance(self.header, bool):
            raise field_error(self, "header", "True, False or None")
        for name, least in (("max_bytes", 4), ("max_errors", 0)):
            if type(value := getattr(self, name)) is not int or value < least:
                raise field_error(self, name, f"at least {least}")
        are_names = all(isinstance(name, str) and name for name in self.fields)
        if not self.fields or not are_names or len(set(self.fields)) != len(self.fields):
            raise field_error(self, "fields", "names, each once")
        owner = field_name(self, "files")
        for split, given in self.files.items():
            patterns = _as_list(given)
            if not isinstance(split, str) or not re.fullmatch(r"(?!all$)[A-Za-z]\w*", split):
                raise UserError(
                    f"{owner} must name splits such as 'train', not 'all', got {split!r}"
                )
            if not isinstance(patterns, list | tuple) or not all(
                isinstance(pattern, str) for pattern in patterns
            ):
                raise UserError(
                    f"{owner}[{split!r}] must be a path or a list of paths, got {patterns!r}"
                )
        if not self.files:
            raise UserError(f"{owner} must name a split, as in {{'train': 'a.txt'}}, got {{}}")

    def records(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Records:
        """Returns the records of a split, in the order of the files.

        Args:
            split: a split, a slice such as "train[:10%]", a sum such as "train+test", or "all".

        Raises:
            UserError: if the split is unknown, or its files are missing or cannot be read.
        """
        instructions: list[Any] = []
        digests: dict[str, str] = {}
        for name, part in self._parts_of_split(split):
            build = self._build(name)
            folder = build.folder(self.data_dir)
            recipe = build.recipe(self.max_errors)
            build_shards(folder, build.shards, recipe, options)
            summaries = summaries_of(folder)
            whole = add(summaries.values())
            # The data set may have been built with a higher limit.
            check_bad(whole, self.max_errors)
            if whole.bad:
                _warn_of_bad_rows(recipe.name, summary_text(whole))
            splits = splits_of(folder, name, summaries)
            instructions += instructions_of(field_name(self, "files"), splits, part)
            digests |= {name: summary.digest for name, summary in summaries.items()}
        return TfdsRecords(
            f"files {split}",
            text_features(self.fields),
            instructions,
            digests=digests,
            has_stored_fields=True,
        )

    def _parts_of_split(self, split: str) -> list[tuple[str, str]]:
        """Returns pairs (name of a split, its slice) whose records together are `split`."""
        if split == "all":
            return [(name, name) for name in self.files]
        terms = [term.strip() for term in split.split("+")]
        names = [re.match(r"\w*", term).group() for term in terms]  # type: ignore[union-attr]
        for name in names:
            if name not in self.files:
                known = suggestion(name, self.files)
                raise UserError(f"{field_name(self, 'files')} has no split {name!r}; {known}")
        return [(names[0], split)] if len(set(names)) == 1 else list(zip(names, terms, strict=True))

    def _build(self, split: str) -> SplitBuild:
        # Files are looked up once.
        builds: dict[str, SplitBuild] = self.__dict__.setdefault("_builds", {})
        if split not in builds:
            builds[split] = SplitBuild(
                split=split,
                paths=tuple(self._paths(split)),
                fields=tuple(self.fields),
                format=self.format,
                header=self.header,
                max_bytes=self.max_bytes,
            )
        return builds[split]

    def _paths(self, split: str) -> list[str]:
        patterns = _as_list(self.files[split])
        paths = [path for pattern in patterns for path in find_files(self.folder, pattern)]
        for path, count in collections.Counter(paths).items():
            if count > 1:
                owner = field_name(self, "files")
                raise UserError(f"{owner}[{split!r}] names {path} more than once")
        return paths


def _as_list(patterns: Any) -> Any:
    return [patterns] if isinstance(patterns, str) else patterns


@functools.cache
def _warn_of_bad_rows(name: str, description: str) -> None:
    log.warning("%s: %s", name, description)
