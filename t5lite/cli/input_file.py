"""The input file of `t5lite infer`, read once to check it and once to work on it."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from t5lite.core.counts import counted
from t5lite.core.errors import UserError
from t5lite.inference.answers import RequestEncoder
from t5lite.inference.decoding import check_target_lengths
from t5lite.inference.requests import Inference, Request, read_requests


def _read(
    flags: Any,
    inference: Inference,
    encoder: RequestEncoder,
    check: Callable[[Request], None],
    on_bad: Callable[[UserError], None],
) -> Iterator[Request | None]:
    """Reads the requests; invalid ones are errors, or are skipped if `infer.bad_objects` says."""
    skips = inference.bad_objects == "skip"
    return read_requests(
        flags.input,
        inference,
        flags.mode,
        kept=encoder.kept_texts if inference.preprocessors else None,
        check=check,
        on_bad=on_bad if skips else None,
    )


def valid_requests(flags: Any, inference: Inference, encoder: RequestEncoder) -> Iterator[Request]:
    """Yields the requests that `check_requests` counts."""

    def check(request: Request) -> None:
        if inference.bad_objects == "skip":
            encoder.is_cut(request)

    for request in _read(flags, inference, encoder, check, lambda error: None):
        if request is not None:
            yield request


def check_requests(flags: Any, inference: Inference, encoder: RequestEncoder) -> int:
    """Reads all requests once, prints what is cut or skipped, and returns their number.

    Raises:
        UserError: if one has no result and `infer.bad_objects` is "stop".
    """
    check_target_lengths(vars(inference.decoding), encoder.lengths[1], "infer.targets_length")
    total = empty = 0
    cut: list[int] = []
    bad: list[UserError] = []

    def check(request: Request) -> None:
        if encoder.is_cut(request):
            cut.append(total + 1)

    for request in _read(flags, inference, encoder, check, bad.append):
        empty += request is None
        total += request is not None
    if total == 0:
        skipped = f": {bad[0]}" if bad else ""
        raise UserError(f"--input={flags.input} has no object to work on{skipped}")
    inputs, targets = encoder.lengths
    longer = f"longer than {inputs} tokens of inputs or {targets} of targets"
    if cut and inference.too_long == "refuse":
        raise UserError(
            f"{flags.input}: {len(cut):,} of {counted(total, 'object')} are {longer}, first object "
            f"{cut[0]:,}; infer.too_long = 'cut' cuts them, infer.inputs_length and "
            "infer.targets_length raise the maximum"
        )
    if jax.process_index() == 0:
        for count, text in (
            (empty, f"skipped {counted(empty, 'empty line')}"),
            (len(cut), f"cut {len(cut):,} of {counted(total, 'object')}: {longer}"),
            (
                len(bad),
                f"skipped {counted(len(bad), 'object')}, the first: {bad[0] if bad else None}",
            ),
        ):
            if count:
                print(text, file=sys.stderr)
    return total
