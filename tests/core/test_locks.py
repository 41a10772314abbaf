"""Lock files, also those that are renamed or removed while others wait for them."""

import time

import pytest

from t5lite.core.errors import Unavailable
from t5lite.core.locks import hold_lock, is_file_of, lock_holder


def conflict(holder):
    return f"held by {holder}"


def test_a_second_process_is_told_the_holder(tmp_path):
    path = tmp_path / "a.lock"
    assert lock_holder(path) is None
    with hold_lock(path, conflict):
        holder = lock_holder(path)
        assert holder
        with pytest.raises(Unavailable, match=f"held by {holder}"), hold_lock(path, conflict):
            pass
    assert lock_holder(path) is None


def test_a_lock_file_that_its_holder_renames_is_not_written_by_the_next(tmp_path, monkeypatch):
    path = tmp_path / "a.tmp"
    first = hold_lock(path, conflict)
    first.__enter__()

    def end_first(seconds):
        monkeypatch.undo()
        path.write_text("the result")
        path.rename(tmp_path / "a")
        first.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", end_first)
    with hold_lock(path, conflict):
        assert lock_holder(path)
    assert (tmp_path / "a").read_text() == "the result"


def test_a_removed_or_replaced_file_is_not_that_of_its_path(tmp_path):
    path = tmp_path / "a"
    with path.open("w") as file:
        assert is_file_of(path, file)
        path.unlink()
        assert not is_file_of(path, file)
        path.touch()
        assert not is_file_of(path, file)
