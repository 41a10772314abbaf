"""What `t5lite infer` is asked: objects or lines of a file, checked before anything is compiled."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5lite.core.errors import UserError, check_choice, suggestion
from t5lite.core.numbers import check_number
from t5lite.data.sources.files import format_of, open_file, read_errors, read_lines
from t5lite.data.text import preprocessors, templates
from t5lite.data.text.fields import as_field
from t5lite.data.text.json_values import decode_json, plain_value
from t5lite.inference.decoding import COUNTS, Decoding
from t5lite.parallel.mesh import Mesh

MODES = ("predict", "score")
TOO_LONG = ("cut", "refuse")
# What is added to an object.
RESULTS = {
    "predict": ("prediction", "predictions", "score", "scores"),
    "score": ("score", "target_tokens"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """What `t5lite infer` does with the objects of a file.

    Args:
        inputs, targets: templates over the fields of an object; `targets` only where it is scored.
        preprocessors: steps that change an object's texts before, by name; as in `Task`.
        inputs_length: tokens of the inputs at most, the end included; None for the run's, or 512.
        targets_length: tokens that are written, behind a prefix, or scored at most; None for the
            run's, or 128.
        too_long: what is longer is "cut" and counted, or "refuse"d before anything starts.
        end_inputs: whether inputs are closed by an end of sequence, as `Supervised` does; a
            causal language model goes on with inputs that are not.
        decoding: how targets are written.
        num_best: targets of each object that are told, at most as many as are written.
        batch_size: objects worked on at a time.
        chunk_size: objects between two times that results are written; those of one chunk are
            sorted by length, so more of them mean less padding.
        seed: of what is sampled.
        mesh: the devices.

    Raises:
        UserError: for a choice out of range.
    """

    inputs: str = "{inputs}"
    targets: str = "{targets}"
    preprocessors: Sequence[str] = ()
    inputs_length: int | None = None
    targets_length: int | None = None
    too_long: str = "cut"
    end_inputs: bool = True
    decoding: Decoding = Decoding()
    num_best: int = 1
    batch_size: int = 32
    chunk_size: int = 1024
    seed: int = 0
    mesh: Mesh = Mesh()

    def __post_init__(self) -> None:
        for name in ("inputs_length", "targets_length", "num_best", "batch_size", "chunk_size"):
            check_number(f"infer.{name}", getattr(self, name), "at least 1", lambda n: n >= 1)
        check_number("infer.seed", self.seed, "in [0, 2**31)", lambda n: 0 <= n < 2**31)
        check_choice("infer.too_long", self.too_long, TOO_LONG)
        for owner in ("inputs", "targets"):
            templates.fields_of(f"infer.{owner}", getattr(self, owner))
        for step in self.preprocessors:
            preprocessors.preprocessor(step, owner="infer.preprocessors")
        if self.num_best > self.decoding.num_targets:
            raise UserError(
                f"infer.num_best must be at most the {self.decoding.num_targets} targets that are "
                f"written, got {self.num_best}; raise Decoding.num_beams or Decoding.num_samples"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One object.

    Args:
        given: as it stands in the file; its results are added to it.
        targets: what is to be scored; None where targets are to be written.
        prefix: what the target that is written begins with.
        decoding: numbers of `Decoding` that are its own.
    """

    given: Mapping[str, Any]
    inputs: str
    targets: str | None = None
    prefix: str = ""
    decoding: Mapping[str, int | float] = dataclasses.field(default_factory=dict)


def read_requests(path: str, inference: Inference, mode: str) -> Iterator[Request | None]:
    """Yields the requests of a file in order: its objects in JSONL, or its lines as `inputs`.

    An empty line of JSONL is none; an empty line of text is an empty input.

    Raises:
        UserError: with file and line, where there is something else.
    """
    form = format_of(path)
    if form not in ("jsonl", "lines"):
        raise UserError(f"--input={path} must be objects in .jsonl, or lines in .txt, got {form}")
    is_text = form == "lines"
    with read_errors(path), open_file(path) as file:
        for number, line in enumerate(read_lines(file, path), start=1):
            place = f"{path}:{number}"
            try:
                # A mark of the byte order, as some editors put first, is no text.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: no UTF-8 at byte {error.start} of the line") from error
            if is_text:
                yield _request({"inputs": text.rstrip("\r\n")}, inference, mode, place, number)
            elif text.strip():
                yield _request(_object(text, place, mode), inference, mode, place, number)
            else:
                yield None


def _object(text: str, place: str, mode: str) -> dict[str, Any]:
    try:
        given = decode_json(text)
    except ValueError as error:
        raise UserError(f"{place}: not JSON: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f"{place}: must be a JSON object, got {type(given).__name__}")
    for name in RESULTS[mode]:
        if name in given:
            raise UserError(f"{place}: has a field {name!r} already, which would be overwritten")
    try:
        plain_value(given)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error
    return given


def _request(
    given: dict[str, Any], inference: Inference, mode: str, place: str, number: int
) -> Request:
    fields = {name: as_field(value) for name, value in given.items()}
    record = {name: value for name, value in fields.items() if isinstance(value, str)}
    steps = inference.preprocessors
    changed = preprocessors.changed("infer.preprocessors", steps, record, number)
    if changed is None:
        raise UserError(f"{place}: infer.preprocessors left it out; every object needs a result")
    needed = ("inputs", "targets") if mode == "score" else ("inputs",)
    for owner in needed:
        for name in templates.fields_of(f"infer.{owner}", getattr(inference, owner)):
            if templates.has_field(name, changed):
                continue
            if name in given and name not in record:
                kind = type(given[name]).__name__
                raise UserError(f"{place}: field {name!r} must be a text, got {kind}")
            raise UserError(f"{place}: no text {name!r}; {suggestion(name, changed)}")
    inputs = templates.fill(inference.inputs, changed)
    if mode == "score":
        targets = templates.fill(inference.targets, changed)
        return Request(given=given, inputs=inputs, targets=targets)
    decoding = given.get("decoding", {})
    _check_decoding(decoding, inference.decoding, place)
    prefix = given.get("prefix", "")
    if not isinstance(prefix, str):
        raise UserError(f"{place}: prefix must be a text, got {prefix!r}")
    return Request(given=given, inputs=inputs, prefix=prefix, decoding=decoding)


def _check_decoding(own: Any, usual: Decoding, place: str) -> None:
    """Checks an object's own numbers of `Decoding`."""
    if not isinstance(own, dict):
        raise UserError(f"{place}: decoding must be an object, got {own!r}")
    numbers = {f.name for f in dataclasses.fields(Decoding) if not f.metadata.get("static")}
    for name in own:
        if name not in numbers:
            raise UserError(
                f"{place}: decoding has no number {name!r} of its own; {suggestion(name, numbers)}"
            )
    if own.get("temperature") is not None and usual.temperature is None:
        raise UserError(
            f"{place}: decoding has a temperature, but the others are written greedily; set "
            "Decoding.temperature, and give each object its own"
        )
    for name, value in own.items():
        kinds = int if name in COUNTS else int | float
        if not isinstance(value, kinds) or isinstance(value, bool):
            rule = "a whole number" if name in COUNTS else "a number"
            raise UserError(f"{place}: {name} of decoding must be {rule}, got {value!r}")
    try:
        dataclasses.replace(usual, **own)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def fingerprint(path: str) -> str:
    """Returns a digest of all that is in a file."""
    digest = hashlib.sha256()
    with read_errors(path), open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
