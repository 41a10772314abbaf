"""The requests of `t5lite infer`: objects or lines of a file, checked before anything compiles."""

import contextlib
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from t5lite.core.errors import UserError, suggestion
from t5lite.core.fields import (
    MAX_COUNT,
    check_field_choice,
    check_fields,
    field_error,
    field_name,
)
from t5lite.core.json_values import decode_json, plain_value
from t5lite.data.sources.files import format_of, open_file, read_errors, read_lines
from t5lite.data.text import preprocessors, templates
from t5lite.data.text.fields import Record, as_field
from t5lite.data.text.vocabulary import Vocabulary
from t5lite.inference.decoding import COUNTS, Decoding
from t5lite.models.config_fields import DTYPES
from t5lite.parallel.mesh import Mesh

TOO_LONG = ("cut", "refuse")
BAD_OBJECTS = ("stop", "skip")
# From a record and its number to the record after all preprocessors, None if one drops it.
Change = Callable[[Record, int], Record | None]
# The fields that are added to an object.
RESULT_FIELDS = {
    "predict": ("prediction", "predictions", "score", "scores"),
    "score": ("score", "target_tokens"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """What `t5lite infer` does with the objects of a file.

    Args:
        inputs, targets: templates over the fields of an object; `targets` is used for scoring only.
        preprocessors: names of functions that change an object's texts first, as in `Task`.
        vocabulary: replaces the vocabulary that the checkpoint names, such as one whose file has
            moved; it must encode alike.
        inputs_length: maximum number of input tokens, the end of sequence included; None for the
            run's, or 512.
        targets_length: maximum number of tokens that are generated, after a prefix, or scored; None
            for the run's, or 128.
        too_long: "cut" cuts longer texts and counts them, "refuse" rejects the file.
        bad_objects: "stop" rejects a file with an object that has no result, such as one without
            inputs; "skip" leaves such objects out and counts them.
        end_inputs: whether an end of sequence closes the inputs, as `Supervised` does; a causal
            language model continues inputs that are not closed.
        decoding: how targets are generated.
        num_best: maximum number of targets per object.
        distinct: whether targets with the same text count once; None for beams only, since the
            frequencies of samples carry information.
        batch_size: objects per batch.
        chunk_size: objects between two writes of results. Each chunk is sorted by length, so larger
            chunks have less padding.
        seed: of sampling.
        dtype: of the computation, "bfloat16" or "float32"; None for that of the run file, or
            bfloat16 without one.
        mesh: the devices.

    Raises:
        UserError: for an unknown choice, a number out of range, or a template or preprocessor that
            does not exist.
    """

    gin_name: ClassVar[str] = "infer"

    inputs: str = "{inputs}"
    targets: str = "{targets}"
    preprocessors: Sequence[str] = ()
    vocabulary: Vocabulary | None = None
    inputs_length: int | None = None
    targets_length: int | None = None
    too_long: str = "cut"
    bad_objects: str = "stop"
    end_inputs: bool = True
    decoding: Decoding = Decoding()
    num_best: int = 1
    distinct: bool | None = None
    batch_size: int = 32
    chunk_size: int = 1024
    seed: int = 0
    dtype: str | None = None
    mesh: Mesh = Mesh()

    def __post_init__(self) -> None:
        counts = ("inputs_length", "targets_length", "num_best", "batch_size", "chunk_size")
        rule = f"at least 1 and at most {MAX_COUNT:,}"
        check_fields(self, counts, rule, lambda n: 1 <= n <= MAX_COUNT)
        check_fields(self, ["seed"], "in [0, 2**31)", lambda n: 0 <= n < 2**31)
        check_field_choice(self, "too_long", TOO_LONG)
        check_field_choice(self, "bad_objects", BAD_OBJECTS)
        if self.dtype is not None:
            check_field_choice(self, "dtype", DTYPES)
        for name in ("inputs", "targets"):
            templates.fields_of(field_name(self, name), getattr(self, name))
        for step in self.preprocessors:
            preprocessors.preprocessor(step, owner=field_name(self, "preprocessors"))
        if self.num_best > self.decoding.num_targets:
            raise field_error(
                self,
                "num_best",
                f"at most the {self.decoding.num_targets} targets that are generated",
                "raise Decoding.num_beams or Decoding.num_samples",
            )

    @property
    def is_distinct(self) -> bool:
        """Whether targets with the same text count once."""
        return self.decoding.num_samples == 1 if self.distinct is None else self.distinct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One object.

    Args:
        given: the object as it is in the file; results are added to it.
        targets: the targets to score; None to generate them.
        prefix: the beginning of the generated target.
        decoding: numbers of `Decoding` for this object.
    """

    given: Mapping[str, Any]
    inputs: str
    targets: str | None = None
    prefix: str = ""
    decoding: Mapping[str, int | float] = dataclasses.field(default_factory=dict)


def read_requests(
    path: str,
    inference: Inference,
    mode: str,
    *,
    kept: re.Pattern[str] | None = None,
    check: Callable[[Request], None] = lambda request: None,
    on_bad: Callable[[UserError], None] | None = None,
) -> Iterator[Request | None]:
    """Yields the requests of a file in order: JSONL objects, or lines of text as `inputs`.

    An empty line of JSONL gives None; an empty line of text is an empty input.

    Args:
        kept: matches texts that preprocessors leave as they are: `Vocabulary.kept_texts`.
        check: raises a UserError for a request that has no result.
        on_bad: called with the error of an object, which is skipped then; None raises it.

    Raises:
        UserError: naming file and line, for an invalid object.
    """
    owner = field_name(inference, "preprocessors")
    change = functools.partial(preprocessors.changed, owner, inference.preprocessors, kept=kept)
    form = format_of(path)
    if form not in ("jsonl", "lines"):
        raise UserError(f"--input={path} must be objects in .jsonl, or lines in .txt, got {form}")
    with read_errors(path), open_file(path) as file:
        for number, line in enumerate(read_lines(file, path), start=1):
            try:
                request = _read_line(
                    line, change, inference, mode, f"{path}:{number}", number, form
                )
                if request is not None:
                    with _located(f"{path}:{number}"):
                        check(request)
            except UserError as error:
                if on_bad is None:
                    raise
                on_bad(error)
            else:
                yield request


@contextlib.contextmanager
def _located(location: str) -> Iterator[None]:
    """Names the file and line in the errors of an object."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{location}: {error}") from error


def _read_line(
    line: bytes,
    change: Change,
    inference: Inference,
    mode: str,
    location: str,
    number: int,
    form: str,
) -> Request | None:
    """Returns the request of a line; None for an empty line of JSONL."""
    try:
        # Some editors write a byte-order mark first.
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{location}: not UTF-8 at byte {error.start} of the line") from error
    if form == "lines":
        given = {"inputs": text.rstrip("\r\n")}
        return _request(given, change, inference, mode, location, number)
    if not text.strip():
        return None
    given = _object(text, location, mode)
    return _request(given, change, inference, mode, location, number)


def _object(text: str, location: str, mode: str) -> dict[str, Any]:
    try:
        given = decode_json(text)
    except ValueError as error:
        raise UserError(f"{location}: not JSON: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f"{location}: must be a JSON object, got {type(given).__name__}")
    for name in RESULT_FIELDS[mode]:
        if name in given:
            raise UserError(
                f"{location}: the result would overwrite its field {name!r}; rename the field"
            )
    try:
        plain_value(given)
    except ValueError as error:
        raise UserError(f"{location}: {error}") from error
    return given


def _request(
    given: dict[str, Any],
    change: Change,
    inference: Inference,
    mode: str,
    location: str,
    number: int,
) -> Request:
    fields = {name: as_field(value) for name, value in given.items()}
    record = {name: value for name, value in fields.items() if isinstance(value, str)}
    changed = change(record, number)
    if changed is None:
        owner = field_name(inference, "preprocessors")
        raise UserError(f"{location}: {owner} dropped it; every object needs a result")
    for side in ("inputs", "targets") if mode == "score" else ("inputs",):
        template = getattr(inference, side)
        for name in templates.fields_of(field_name(inference, side), template):
            if templates.has_field(name, changed):
                continue
            if name in given and name not in record:
                kind = type(given[name]).__name__
                raise UserError(f"{location}: field {name!r} must be a string, got {kind}")
            raise UserError(f"{location}: no string field {name!r}; {suggestion(name, changed)}")
    with _located(location):
        inputs = templates.fill(inference.inputs, changed)
        targets = templates.fill(inference.targets, changed) if mode == "score" else None
    if targets is not None:
        return Request(given=given, inputs=inputs, targets=targets)
    decoding = given.get("decoding", {})
    _check_decoding(decoding, inference.decoding, location)
    prefix = given.get("prefix", "")
    if not isinstance(prefix, str):
        raise UserError(f"{location}: prefix must be a string, got {prefix!r}")
    return Request(given=given, inputs=inputs, prefix=prefix, decoding=decoding)


def _check_decoding(own: Any, shared: Decoding, location: str) -> None:
    """Checks an object's own numbers of `Decoding`."""
    if not isinstance(own, dict):
        raise UserError(f"{location}: decoding must be an object, got {own!r}")
    numbers = {f.name for f in dataclasses.fields(Decoding) if not f.metadata.get("static")}
    for name in own:
        if name not in numbers:
            raise UserError(
                f"{location}: an object's decoding cannot set {name!r}; {suggestion(name, numbers)}"
            )
    if own.get("temperature") is not None and shared.temperature is None:
        raise UserError(
            f"{location}: decoding has a temperature, but the run decodes greedily; bind "
            "Decoding.temperature, and give each object its own"
        )
    for name, value in own.items():
        kinds = int if name in COUNTS else int | float
        if not isinstance(value, kinds) or isinstance(value, bool):
            rule = "a whole number" if name in COUNTS else "a number"
            raise UserError(f"{location}: {name} of decoding must be {rule}, got {value!r}")
    with _located(location):
        dataclasses.replace(shared, **own)


def fingerprint(path: str) -> str:
    """Returns a digest of the content of a file."""
    digest = hashlib.sha256()
    with read_errors(path), open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
