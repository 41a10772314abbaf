"""`t5lite inspect --verify`: reads all of a checkpoint and compares it with its checksums."""

from typing import Any

from t5lite.cli.columns import columns_text, terminal_width
from t5lite.cli.documents import json_document
from t5lite.cli.foreign_checkpoint import is_foreign
from t5lite.cli.selection import ChosenCheckpoint, checkpoint_name, chosen_checkpoints
from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.training.checkpoint_errors import Damaged
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.checkpoint_names import ALL
from t5lite.training.state_reading import is_array

VERIFIED = "verified"
UNVERIFIABLE = "readable, no checksums"
DAMAGED_STATUS = "damaged"


def verify_checkpoints(text: str, *, base: str | None = None, as_json: bool) -> None:
    """Prints the status of checkpoints: of all of them if `text` names a MODEL_DIR.

    What a checkpoint uses of its base is read and compared, too.

    Args:
        base: what `--base` names.

    Raises:
        UserError: if one of them is damaged, or `text` names no checkpoint of t5lite.
    """
    name = checkpoint_name(text)
    folder = name.folder
    if folder is None or is_foreign(folder):
        raise UserError(
            f"--verify needs --checkpoint=MODEL_DIR or MODEL_DIR/checkpoints/STEP, got {text}"
        )
    names_run = (folder / FOLDER).is_dir() and not text.endswith(f":{name.which}")
    chosen = chosen_checkpoints(None, f"{text}:{ALL}" if names_run else text, 1, base=base)
    results = [verify_checkpoint(each) for each in chosen]
    if as_json:
        print(json_document({"checkpoints": results}))
    else:
        titles = ["checkpoint", "status", "arrays", "MB"]
        rows = [
            [r["checkpoint"], r["status"], f"{r['arrays']:,}", f"{r['bytes'] / 1e6:,.2f}"]
            for r in results
        ]
        print(columns_text(titles, rows, width=terminal_width(), left={"checkpoint", "status"}))
    if bad := [result for result in results if result["status"] == DAMAGED_STATUS]:
        raise UserError(
            f"damaged checkpoints: {len(bad)} of {len(results)}, first {bad[0]['checkpoint']}: "
            f"{bad[0]['problem']}; restore a copy, or delete what is damaged"
        )


def verify_checkpoint(chosen: ChosenCheckpoint) -> dict[str, Any]:
    """Returns the status of a checkpoint, and how many arrays and bytes were read.

    One array at a time is in memory.
    """
    result: dict[str, Any] = {"checkpoint": chosen.path, "step": chosen.step}
    checkpoints = chosen.checkpoints
    arrays = 0
    size = 0
    problem = None
    try:
        status = UNVERIFIABLE if checkpoints.checksums(chosen.step) is None else VERIFIED
        metadata = checkpoints.metadata(chosen.step)
        for name in by_name(metadata, is_leaf=is_array):
            values = checkpoints.restore_array(chosen.step, name, metadata)
            arrays += 1
            size += values.nbytes
    except Damaged as error:
        status = DAMAGED_STATUS
        problem = error.reason
    except UserError as error:
        # Of its base.
        status = DAMAGED_STATUS
        problem = str(error)
    return result | {"status": status, "problem": problem, "arrays": arrays, "bytes": size}
