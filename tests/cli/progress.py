"""Progress lines among the errors of a command."""


def without_progress(errors: str) -> str:
    """Returns what a conversion prints besides its progress, which only a slow one prints."""
    return "".join(line for line in errors.splitlines(True) if not line.startswith("arrays: "))
