"""What `t5lite convert` reads: a checkpoint of any format, or an adapter and its base."""

import dataclasses
import pathlib
from typing import NamedTuple

from t5lite.cli.run_files import saved_vocabulary
from t5lite.core.errors import UserError, shown
from t5lite.interop import t5x_files
from t5lite.interop.conversion import Conversion
from t5lite.interop.finite import finite_lazy
from t5lite.interop.foreign import Foreign, check_array, check_names
from t5lite.interop.huggingface import is_huggingface, read_huggingface
from t5lite.interop.kept import read_kept
from t5lite.interop.peft_files import PEFT_CONFIG_FILE, is_peft, read_peft
from t5lite.interop.t5x import read_t5x
from t5lite.interop.tensor_files import read_json
from t5lite.models.adapted_maps import with_adapters
from t5lite.models.description import model_of
from t5lite.models.model import parameters
from t5lite.training.about import LENGTHS
from t5lite.training.base_checkpoint import Base
from t5lite.training.checkpoint_names import base_checkpoint, find_checkpoint, open_checkpoint
from t5lite.training.lazy_checkpoints import stored_params

# The format of checkpoints that may have a moving average.
T5LITE = "t5lite"


class Input(NamedTuple):
    """A checkpoint that is converted.

    Args:
        kind: the name of its format.
        base: the checkpoint of t5lite that it adapts; None if it holds all of its parameters.
    """

    foreign: Foreign
    kind: str
    base: Base | None = None


def read_input(
    path: pathlib.Path,
    conversion: Conversion,
    which: str | None = None,
    *,
    flag: str = "--input",
    base: str | None = None,
) -> Input:
    """Returns the checkpoint at `path`.

    Args:
        which: of the parameters; see `StoredCheckpoints.param_paths`.
        flag: names the path, for messages.
        base: what `--base` names; None if it is not given.

    Raises:
        UserError: if there is no checkpoint, or it or its base cannot be read.
    """
    if (found := find_checkpoint(path)) is not None:
        return _read_t5lite(found, conversion, which, base_checkpoint("--base", base))
    if is_peft(path):
        return _read_adapter(path, conversion, base_checkpoint("--base", base))
    if base is not None:
        raise UserError(f"--base is for adapters, got {flag}={path}; leave it out")
    if is_huggingface(path):
        foreign = read_huggingface(
            path,
            allow_nonfinite=conversion.allow_nonfinite,
            ignore_fields=conversion.ignore_fields,
        )
        return Input(_with_vocabulary(foreign, conversion), "Hugging Face")
    if t5x_files.is_checkpoint(path):
        activations = conversion.mlp_activations
        foreign = read_t5x(
            path,
            optimizer_state=conversion.optimizer_state,
            mlp_activations=None if activations is None else tuple(activations),
            encoder_attention=conversion.encoder_attention,
            allow_nonfinite=conversion.allow_nonfinite,
        )
        return Input(_with_vocabulary(foreign, conversion), "T5X")
    if not path.exists():
        raise UserError(f"{flag}={path} does not exist")
    holds = ", ".join(sorted(p.name for p in path.iterdir())[:5]) if path.is_dir() else "a file"
    raise UserError(
        f"{flag}={path} must be a Hugging Face folder (config.json and safetensors), T5X's "
        "checkpoint_STEP, or t5lite's MODEL_DIR or checkpoints/STEP; got "
        f"{holds or 'an empty folder'}"
    )


def _with_vocabulary(foreign: Foreign, conversion: Conversion) -> Foreign:
    if conversion.vocabulary is None:
        return foreign
    return dataclasses.replace(foreign, vocabulary=conversion.vocabulary)


def _read_t5lite(
    folder: str, conversion: Conversion, which: str | None = None, base: str | None = None
) -> Input:
    vocabulary = conversion.vocabulary
    checkpoints, step = open_checkpoint(folder, base)
    own_base = checkpoints.base(step)
    if base is not None and own_base is None:
        raise UserError(
            f"--base is for checkpoints that hold an adapter alone, got --base={base} and "
            f"{folder}, which is complete; leave it out"
        )
    about = checkpoints.about(step)
    model = model_of(about, folder)
    params = stored_params(checkpoints, step, which)
    if vocabulary is None and about.get("vocabulary") is not None:
        model_dir = pathlib.Path(folder).absolute().parent.parent
        vocabulary = saved_vocabulary(about, model_dir)
    shapes = {name: tuple(box.value.shape) for name, box in parameters(model).items()}
    check_names(folder, list(shapes), list(params))
    for name, shape in shapes.items():
        check_array(folder, name, shape, params[name])
    foreign = Foreign(
        model=model,
        lengths=about.get(LENGTHS) or {},
        kept=read_kept(pathlib.Path(folder).absolute().parent.parent),
        params=params if conversion.allow_nonfinite else finite_lazy(params, folder),
        step=step,
        vocabulary=vocabulary,
    )
    return Input(foreign, T5LITE, own_base)


def _read_adapter(path: pathlib.Path, conversion: Conversion, base: str | None) -> Input:
    """Returns an adapter of PEFT together with its base, a checkpoint of t5lite."""
    if base is None:
        name = read_json(path / PEFT_CONFIG_FILE).get("base_model_name_or_path")
        raise UserError(
            f"{path} is an adapter of PEFT for {shown(str(name))}; convert that model with t5lite "
            "convert, and name the result with --base"
        )
    whole = _read_t5lite(base, conversion).foreign
    adapter, params = read_peft(path, whole.model, conversion.ignore_fields)
    checkpoints, step = open_checkpoint(base)
    # A moving average is written with the adapter: it is not what the base trained.
    paths = checkpoints.param_paths(step)
    record = Base(
        checkpoint=checkpoints.path(step),
        fingerprint=checkpoints.fingerprint(step),
        parameters=tuple(sorted(n for n in whole.params if paths[n] == f"params/{n}")),
    )
    if not conversion.allow_nonfinite:
        params = finite_lazy(params, str(path))
    foreign = dataclasses.replace(
        whole,
        model=with_adapters(whole.model, (adapter,)),
        params={**whole.params, **params},
        step=0,
    )
    return Input(foreign, "PEFT", record)
