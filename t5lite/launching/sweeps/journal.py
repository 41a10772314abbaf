"""Optuna's journal file, with a lock that ends with its process."""

import os
import pathlib
import threading

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from t5lite.core.locks import wait_for_lock


class JournalLock(JournalFileOpenLock):
    """A lock on the journal that is never stale: the kernel releases it when its holder dies."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._held = threading.local()

    def acquire(self) -> bool:
        """Waits for the lock, and removes a line that a kill or a full disk cut short."""
        self._held.file = self.path.with_suffix(".lock").open("w")
        wait_for_lock(self._held.file)
        if self.path.exists():
            with self.path.open("r+b") as journal:
                size = journal.seek(0, os.SEEK_END)
                end = size
                while end and (journal.seek(end - 1), journal.read(1))[1] != b"\n":
                    end -= 1
                if end < size:
                    journal.truncate(end)
        return True

    def release(self) -> None:
        """Releases the lock."""
        self._held.file.close()


def open_journal(lock: JournalLock) -> JournalStorage:
    """Opens the journal that a lock protects."""
    return JournalStorage(JournalFileBackend(str(lock.path), lock))
