"""The journal that holds the trials of a sweep: operations of Optuna, one JSON object a line.

Several processes append to it under a lock that ends with its process.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from t5lite.core.errors import UserError
from t5lite.core.locks import wait_for_lock
from t5lite.core.records import (
    NUMBER,
    OBJECT,
    TEXT,
    TIME,
    Kind,
    Schema,
    decode_record,
    integer,
    list_of,
    object_of,
    or_null,
)

STUDY_NAME = "sweep"

_ID = integer(0)
_STUDY = Kind("0, the only study", lambda value: type(value) is int and value == 0)
_NAME = Kind(f"{STUDY_NAME!r}", lambda value: value == STUDY_NAME)
_STATE = Kind("the state of a trial", lambda value: value in list(TrialState))
_DIRECTION = Kind(
    "a list of one direction",
    lambda value: isinstance(value, list) and len(value) == 1 and value[0] in list(StudyDirection),
)
_VALUES = Kind(
    "a list of one number, or null",
    lambda value: value is None or (list_of(NUMBER).holds(value) and len(value) == 1),
)
_ATTRIBUTE = Kind(
    "an object with one field", lambda value: isinstance(value, dict) and len(value) == 1
)
_CREATE_TRIAL = 4
# The required fields of each operation, by its code.
_OPERATIONS = {
    0: {"study_name": _NAME, "directions": _DIRECTION},
    2: {"study_id": _STUDY, "user_attr": _ATTRIBUTE},
    3: {"study_id": _STUDY, "system_attr": _ATTRIBUTE},
    _CREATE_TRIAL: {"study_id": _STUDY, "datetime_start": or_null(TIME)},
    5: {
        "trial_id": _ID,
        "param_name": TEXT,
        "param_value_internal": NUMBER,
        "distribution": TEXT,
    },
    6: {"trial_id": _ID, "state": _STATE, "values": _VALUES},
    7: {"trial_id": _ID, "step": _ID, "intermediate_value": NUMBER},
    8: {"trial_id": _ID, "user_attr": _ATTRIBUTE},
    9: {"trial_id": _ID, "system_attr": _ATTRIBUTE},
}
_OPTIONAL = {
    "state": _STATE,
    "value": or_null(NUMBER),
    "values": _VALUES,
    "datetime_start": TIME,
    "datetime_complete": TIME,
    "distributions": object_of(TEXT),
    "params": object_of(NUMBER),
    "user_attrs": OBJECT,
    "system_attrs": OBJECT,
    "intermediate_values": object_of(NUMBER),
}
_CODE = Kind("the code of an operation", lambda value: type(value) is int and value in _OPERATIONS)
_ANY_OPERATION = Schema(required={"op_code": _CODE, "worker_id": TEXT})
JOURNAL_SCHEMAS = {
    code: Schema(required=fields, optional=_OPTIONAL) for code, fields in _OPERATIONS.items()
}
# What Optuna raises for operations that do not fit together.
_REPLAY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class Journal(BaseJournalBackend):
    """A journal file for `JournalStorage`.

    Args:
        path: of the file, created when the first operation is written.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        # Where each line begins that was read so far, and the end of the last one.
        self._starts = [0]
        # The line that Optuna is applying.
        self._line = 0
        # Trials that the lines before it created.
        self._num_trials = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yields the operations after the first `log_number_from`, without one that is cut short.

        Raises:
            UserError: for a line that is no operation.
        """
        number = min(log_number_from, len(self._starts) - 1)
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._starts[number])
            for line in file:
                if not line.endswith(b"\n"):
                    return
                number += 1
                if number > log_number_from:
                    self._line = number
                    yield self._operation(line)
                if number == len(self._starts):
                    self._starts.append(self._starts[-1] + len(line))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends operations, which are on the disk when it returns."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self.path.with_suffix(".lock").open("w") as lock:
            wait_for_lock(lock)
            with self.path.open("a+b") as file:
                _remove_cut_line(file)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def replay_errors(self) -> Iterator[None]:
        """Turns errors of Optuna about operations that do not fit together into one line."""
        try:
            yield
        except _REPLAY_ERRORS as error:
            reason = (str(error).splitlines() or [""])[0]
            raise self._damaged(f"{type(error).__name__}: {reason}") from error

    def _operation(self, line: bytes) -> dict[str, Any]:
        try:
            operation = decode_record(line, _ANY_OPERATION)
            code = operation["op_code"]
            JOURNAL_SCHEMAS[code].check(operation)
            # Optuna would ignore it.
            if operation.get("trial_id", -1) >= self._num_trials:
                raise ValueError(f"trial {operation['trial_id']} does not exist yet")
        except ValueError as error:
            raise self._damaged(str(error)) from error
        self._num_trials += code == _CREATE_TRIAL
        return operation

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"{self.path}:{self._line}: {reason[:200]}; restore the file, or launch under another "
            "--name"
        )


def open_journal(journal: Journal) -> JournalStorage:
    """Opens a journal.

    Raises:
        UserError: if it is damaged.
    """
    with journal.replay_errors():
        return JournalStorage(journal)


def _remove_cut_line(file: Any) -> None:
    """Removes what a kill or a full disk left of a last line."""
    end = size = file.seek(0, os.SEEK_END)
    while end and (file.seek(end - 1), file.read(1))[1] != b"\n":
        end -= 1
    if end < size:
        file.truncate(end)
