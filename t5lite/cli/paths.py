"""Paths that users name by flags."""

import pathlib

from t5lite.core.errors import UserError


def user_path(flag: str, text: str) -> pathlib.Path:
    """Returns a path with `~` expanded.

    Raises:
        UserError: for an unknown home directory, as in `~nosuchuser/x`.
    """
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{flag}={text}: {error}; name the directory itself") from error
