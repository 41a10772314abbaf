"""Runs in Weights & Biases; needs the extra `wandb`."""

import dataclasses
import importlib.util
import secrets
from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError
from t5lite.core.fields import check_field_choice
from t5lite.core.files import write_atomically
from t5lite.training.writers.writer import RunInfo

WANDB_MODES = ("online", "offline")
# Holds the id of the run, so that a resumed run continues it.
RUN_ID = "wandb_run_id"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsAndBiases:
    """Logs metrics named SPLIT/NAME, and configuration and environment as the run's config.

    Args:
        project: None for the default of wandb.
        entity: a user or team; None for the default of wandb.
        name: of the run; None for the name of MODEL_DIR.
        mode: "online", or "offline" to write to MODEL_DIR/wandb for `wandb sync`.

    Raises:
        UserError: if the mode is unknown.
    """

    project: str | None = None
    entity: str | None = None
    name: str | None = None
    mode: str = "online"

    def __post_init__(self) -> None:
        check_field_choice(self, "mode", WANDB_MODES)

    def open(self, info: RunInfo) -> "WandbRun":
        """Starts a run, or continues the one of this MODEL_DIR.

        Raises:
            UserError: if wandb is not installed.
        """
        if importlib.util.find_spec("wandb") is None:
            raise UserError(
                "train.writers: WeightsAndBiases needs the package wandb; install it with "
                "pip install 't5lite[wandb]', or remove the writer"
            )
        return WandbRun(self, info)


class WandbRun:
    """An open run of wandb."""

    def __init__(self, writer: WeightsAndBiases, info: RunInfo) -> None:
        # Imported here: it is an optional package.
        import wandb

        id_file = info.model_dir / RUN_ID
        if info.is_new or not id_file.exists():
            write_atomically(id_file, secrets.token_hex(4))
        config: dict[str, Any] = {**info.environment, "gin": info.config_text}
        self._run = wandb.init(
            project=writer.project,
            entity=writer.entity,
            name=writer.name or info.model_dir.name,
            mode=writer.mode,
            dir=str(info.model_dir),
            id=id_file.read_text().strip(),
            resume="allow",
            # Trials of a vectorized sweep have one run each in the same process.
            reinit="create_new",
            config=config,
        )
        # A step of our own, because steps repeat after a resume and wandb's may only grow.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Logs one row."""
        self._run.log({"step": step, **{f"{split}/{k}": v for k, v in metrics.items()}})

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()
