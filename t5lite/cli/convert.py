"""`t5lite convert`."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import rich.console

from t5lite import configurables
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import VOCABULARY_COPY, saved_vocabulary
from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.data.text.vocabularies import SentencePieceVocabulary
from t5lite.interop import t5x_files
from t5lite.interop.conversion import Conversion
from t5lite.interop.finite import finite_lazy
from t5lite.interop.foreign import Foreign, check_array, check_names
from t5lite.interop.huggingface import is_huggingface, read_huggingface, write_huggingface
from t5lite.interop.model_gin import model_gin
from t5lite.interop.t5x import read_t5x
from t5lite.models.config_fields import DTYPES
from t5lite.models.description import describe, model_of
from t5lite.models.model import parameters
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import state_axes, tree_shardings
from t5lite.training.checkpoints import FOLDER, find_checkpoint, open_checkpoint
from t5lite.training.lazy_checkpoints import stored_params, write_lazily

MODEL_FILE = "model.gin"


def convert_command(flags: Any, bindings: Sequence[str]) -> None:
    """Reads a checkpoint of any supported format and writes it for t5lite or Hugging Face.

    Raises:
        UserError: if the input is no checkpoint, the output exists, or a binding of `convert` would
            have no effect on this conversion.
    """
    quiet_libraries()
    if flags.input is None or flags.output is None:
        missing = "--input" if flags.input is None else "--output"
        raise UserError(f"convert needs {missing}=FOLDER")
    (conversion,) = configurables.load(flags.gin_file, bindings, flags.gin_search_paths, "convert")
    console = rich.console.Console(highlight=False, soft_wrap=True, markup=False)
    source, output = (pathlib.Path(path).expanduser() for path in (flags.input, flags.output))
    _check_output(output)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        foreign, kind = _read(source, conversion, stack)
        _check_used(conversion, kind, flags.to)
        _check_vocabulary(foreign)
        count = sum(array.size for array in foreign.params.values())
        architecture = type(foreign.model).__name__
        console.print(f"{source}: {kind}, {architecture}, {count:,} parameters")
        folder = stack.enter_context(_partial_folder(output))
        if flags.to == "huggingface":
            remarks = write_huggingface(
                foreign,
                folder,
                np.dtype(DTYPES[conversion.dtype]),
                max_input_tokens=conversion.max_input_tokens,
                max_target_tokens=conversion.max_target_tokens,
            )
            written = str(output)
        else:
            remarks = _write(foreign, folder, output, conversion)
            written = f"{output}/{FOLDER}/{foreign.step}"
    interrupted = [
        f"an interrupted conversion left {left}; delete it"
        for left in sorted(output.absolute().parent.glob(f"{output.name}.partial-*"))
    ]
    for remark in (*foreign.remarks, *remarks, *interrupted):
        console.print(f"note: {remark}")
    console.print(f"wrote {written} in {time.perf_counter() - started:.0f} s")


def _read(
    path: pathlib.Path, conversion: Conversion, stack: contextlib.ExitStack
) -> tuple[Foreign, str]:
    """Returns the checkpoint at `path` and the name of its format."""
    if (found := find_checkpoint(path)) is not None:
        return _read_t5lite(found, conversion, stack), "t5lite"
    if is_huggingface(path):
        foreign = read_huggingface(path, allow_nonfinite=conversion.allow_nonfinite)
        return _with_vocabulary(foreign, conversion), "Hugging Face"
    if t5x_files.is_checkpoint(path):
        activations = conversion.mlp_activations
        foreign = read_t5x(
            path,
            optimizer_state=conversion.optimizer_state,
            mlp_activations=None if activations is None else tuple(activations),
            encoder_attention=conversion.encoder_attention,
            allow_nonfinite=conversion.allow_nonfinite,
        )
        return _with_vocabulary(foreign, conversion), "T5X"
    if not path.exists():
        raise UserError(f"--input={path} does not exist")
    holds = ", ".join(sorted(p.name for p in path.iterdir())[:5]) if path.is_dir() else "a file"
    raise UserError(
        f"--input={path} must be a Hugging Face folder (config.json and safetensors), T5X's "
        "checkpoint_STEP, or t5lite's MODEL_DIR or checkpoints/STEP; got "
        f"{holds or 'an empty folder'}"
    )


def _check_used(conversion: Conversion, kind: str, to: str) -> None:
    """Raises a UserError for a choice that would have no effect on this conversion."""
    usual = Conversion()
    for name, is_used, where in (
        ("optimizer_state", kind == "T5X" and to == "t5lite", "T5X to t5lite"),
        ("mlp_activations", kind == "T5X", "T5X"),
        ("encoder_attention", kind == "T5X", "T5X"),
        ("dtype", to == "huggingface", "--to=huggingface"),
        ("max_input_tokens", to == "huggingface", "--to=huggingface"),
        ("max_target_tokens", to == "huggingface", "--to=huggingface"),
    ):
        if not is_used and getattr(conversion, name) != getattr(usual, name):
            raise UserError(f"convert.{name} is for {where}, got a conversion of {kind} to {to}")


def _check_output(output: pathlib.Path) -> None:
    """Raises a UserError unless `output` is free, or an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} exists; choose another folder")
    if output.is_symlink():
        raise UserError(f"--output={output} is a link; name the folder itself")


def _check_vocabulary(foreign: Foreign) -> None:
    vocabulary = foreign.vocabulary
    size = foreign.model.config.vocab_size
    if vocabulary is not None and vocabulary.size > size:
        raise UserError(
            f"the vocabulary has {vocabulary.size} ids ({vocabulary.num_sentinels} sentinels "
            f"included) and the model {size}; bind the model's own as convert.vocabulary"
        )


def _with_vocabulary(foreign: Foreign, conversion: Conversion) -> Foreign:
    if conversion.vocabulary is None:
        return foreign
    return dataclasses.replace(foreign, vocabulary=conversion.vocabulary)


def _read_t5lite(folder: str, conversion: Conversion, stack: contextlib.ExitStack) -> Foreign:
    vocabulary = conversion.vocabulary
    checkpoints, step = stack.enter_context(open_checkpoint(folder))
    about = checkpoints.about(step)
    model = model_of(about, folder)
    params = stored_params(checkpoints, step)
    if vocabulary is None and about.get("vocabulary") is not None:
        model_dir = pathlib.Path(folder).absolute().parent.parent
        vocabulary = saved_vocabulary(about, model_dir)
    shapes = {name: tuple(box.value.shape) for name, box in parameters(model).items()}
    check_names(folder, list(shapes), list(params))
    for name, shape in shapes.items():
        check_array(folder, name, shape, params[name])
    return Foreign(
        model=model,
        params=params if conversion.allow_nonfinite else finite_lazy(params, folder),
        step=step,
        vocabulary=vocabulary,
    )


@contextlib.contextmanager
def _partial_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder that becomes `output` on success and is removed on failure."""
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{output.name}.partial-", dir=output.parent))
    try:
        # The mode of newly created folders: temporary ones are for their owner alone.
        os.umask(mask := os.umask(0))
        partial.chmod(0o777 & ~mask)
        yield partial
        try:
            if output.is_dir():
                output.rmdir()
            partial.rename(output)
        except OSError as error:
            raise UserError(
                f"--output={output} was created by another process meanwhile: {error.strerror}"
            ) from error
    finally:
        # Threads of Orbax may still write while the folder is being removed.
        for _ in range(20):
            shutil.rmtree(partial, ignore_errors=True)
            if not partial.exists():
                break
            time.sleep(0.1)


def _write(
    foreign: Foreign, folder: pathlib.Path, output: pathlib.Path, conversion: Conversion
) -> list[str]:
    """Writes a t5lite checkpoint, the gin file of its model and its vocabulary."""
    vocabulary = foreign.vocabulary
    path = str((output / VOCABULARY_COPY).absolute())
    described = None if vocabulary is None else vocabulary.describe()
    if described is not None and isinstance(vocabulary, SentencePieceVocabulary):
        shutil.copyfile(described["path"], folder / VOCABULARY_COPY)
        described["path"] = VOCABULARY_COPY
    about = {
        "model": describe(foreign.model),
        "vocabulary": described,
        "vocabulary_fingerprint": None if vocabulary is None else vocabulary.fingerprint,
    }
    write_lazily(folder, foreign.step, _state(foreign, conversion.mesh.make()), about)
    (folder / MODEL_FILE).write_text(model_gin(foreign.model, vocabulary, path))
    remark = (
        f"to train from it, add --gin_file={output}/{MODEL_FILE} and "
        f"--gin.train.initial_checkpoint={output}/{FOLDER}/{foreign.step} to a run file's command"
    )
    return [remark]


def _state(foreign: Foreign, mesh: DeviceMesh) -> dict[str, Any]:
    """Returns the content of a t5lite checkpoint, each array with its sharding on the mesh."""
    params = flax.traverse_util.unflatten_dict(dict(foreign.params), sep="/")
    axes = {name: tuple(box.names) for name, box in parameters(foreign.model).items()}
    names: dict[str, Any] = {"step": (), "params": flax.traverse_util.unflatten_dict(axes, sep="/")}
    step = np.asarray(foreign.step, np.int32)
    state: dict[str, Any] = {"step": LazyArray((), step.dtype, lambda: step), "params": params}
    if foreign.opt_state is not None:
        moments = flax.traverse_util.unflatten_dict(dict(foreign.opt_state), sep="/")
        state["opt_state"] = moments
        names["opt_state"] = state_axes(moments, params, names["params"])
    return jax.tree.map(
        lambda array, sharding: dataclasses.replace(array, sharding=sharding),
        state,
        tree_shardings(state, names, mesh),
    )
