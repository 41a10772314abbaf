"""Damage to the files of a checkpoint, and how reading the checkpoint then ends."""

import dataclasses
import json
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.training.stored_checkpoints import StoredCheckpoints

KINDS = ("flip", "truncate", "empty", "zero", "overwrite", "delete")
# The longest block that is zeroed or overwritten, in bytes.
MAX_BLOCK = 4096
# Outcomes. The last three must not occur.
OUTCOMES = ("rejected", "no checkpoint", "same state", "other state", "traceback", "abort")


@dataclasses.dataclass(frozen=True)
class Damage:
    """A change of one file.

    Args:
        file: its path in the checkpoint.
        kind: of KINDS.
        seed: of the position and the length.
    """

    file: str
    kind: str
    seed: int


def random_damages(checkpoint: pathlib.Path, count: int, seed: int) -> list[Damage]:
    """Returns damages of all kinds in turn: one half of all files in turn, one half by size."""
    sizes = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in checkpoint.rglob("*")
        if path.is_file() and path.stat().st_size
    }
    # Orbax names its data files at random.
    files = sorted(sizes, key=lambda file: (group_of(file), sizes[file]))
    shares = np.array([sizes[file] for file in files]) / sum(sizes.values())
    rng = np.random.default_rng(seed)
    damages = []
    for number in range(count):
        turn = number // (2 * len(KINDS))
        file = files[turn % len(files)] if number % 2 else str(rng.choice(files, p=shares))
        kind = KINDS[number // 2 % len(KINDS)]
        damages.append(Damage(file, kind, int(rng.integers(2**31))))
    return damages


def apply_damage(checkpoint: pathlib.Path, damage: Damage) -> None:
    """Changes the file: its content is another one afterwards, or it is missing."""
    path = checkpoint / damage.file
    if damage.kind == "delete":
        path.unlink()
        return
    old = path.read_bytes()
    rng = np.random.default_rng(damage.seed)
    while (new := _changed(old, damage.kind, rng)) == old:
        # Zeros were there before: another position.
        pass
    path.write_bytes(new)


def _changed(old: bytes, kind: str, rng: np.random.Generator) -> bytes:
    data = bytearray(old)
    position = int(rng.integers(len(data)))
    length = int(rng.integers(1, MAX_BLOCK + 1))
    if kind == "flip":
        data[position] ^= 1 << int(rng.integers(8))
    elif kind == "truncate":
        del data[position:]
    elif kind == "empty":
        data.clear()
    else:
        block = data[position : position + length]
        data[position : position + length] = (
            bytes(len(block)) if kind == "zero" else rng.bytes(len(block))
        )
    return bytes(data)


def outcome_of(
    checkpoint: pathlib.Path, wanted: Any, about: dict[str, Any], *, params_only: bool = False
) -> tuple[str, str]:
    """Reads a checkpoint as a run does, or as `eval` does; returns the outcome and a message.

    Args:
        wanted: the state that was saved.
        about: the description that was saved.
    """
    checkpoints = StoredCheckpoints(checkpoint.parent)
    step = int(checkpoint.name)
    try:
        if step not in checkpoints.steps():
            return "no checkpoint", ""
        got_about = checkpoints.about(step)
        if params_only:
            wanted = {"params": wanted.params}
            got = {"params": checkpoints.restore_params(step, wanted["params"])}
        else:
            got = checkpoints.restore(step, wanted)
    except UserError as error:
        is_one_line = len(str(error).splitlines()) == 1
        return ("rejected" if is_one_line else "traceback"), str(error)
    # Any: what this looks for.
    except Exception as error:
        return "traceback", repr(error)
    same = got_about == about and same_arrays(got, wanted)
    return ("same state" if same else "other state"), ""


def same_arrays(tree: Any, other: Any) -> bool:
    """Whether two trees have the same bits."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return list(by_name(tree)) == list(by_name(other)) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs
    )


def copy_of(checkpoint: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Copies a checkpoint into an emptied folder, and returns the copy."""
    shutil.rmtree(folder, ignore_errors=True)
    copy = folder / checkpoint.name
    shutil.copytree(checkpoint, copy)
    return copy


def group_of(file: str) -> str:
    """Returns the name under which a file is counted: Orbax names its data files at random."""
    return re.sub(r"d/[0-9a-f]{32}$", "d/*", file)


def as_record(damage: Damage, outcome: str, message: str) -> str:
    """Returns a line of results."""
    return json.dumps({**dataclasses.asdict(damage), "outcome": outcome, "message": message})
