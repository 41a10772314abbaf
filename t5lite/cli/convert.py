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
from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.data.text.vocabularies import (
    SentencePieceVocabulary,
    Vocabulary,
    vocabulary_from_description,
)
from t5lite.interop import huggingface, t5x, t5x_files
from t5lite.interop.conversion import Conversion
from t5lite.interop.foreign import Foreign, check_array, check_names
from t5lite.interop.model_gin import model_gin
from t5lite.models.architectures import parameters
from t5lite.models.config import DTYPES
from t5lite.models.description import describe, model_of
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import state_axes, tree_shardings
from t5lite.training.checkpoints import FOLDER, find_checkpoint, open_checkpoint
from t5lite.training.lazy_checkpoints import stored_params, write_lazily

VOCABULARY_FILE, MODEL_FILE = "vocabulary.model", "model.gin"


def convert_command(flags: Any, bindings: Sequence[str]) -> None:
    """Reads a checkpoint of any kind and writes it for t5lite or for Hugging Face."""
    quiet_libraries()
    if flags.input is None or flags.output is None:
        raise UserError("convert needs --input and --output")
    (conversion,) = configurables.load(flags.gin_file, bindings, flags.gin_search_paths, "convert")
    console = rich.console.Console(highlight=False, soft_wrap=True, markup=False)
    source, output = (pathlib.Path(path).expanduser() for path in (flags.input, flags.output))
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        foreign, kind = _read(source, conversion, stack)
        _check_used(conversion, kind, flags.to)
        _check_vocabulary(foreign)
        count = sum(array.size for array in foreign.params.values())
        architecture = type(foreign.model).__name__
        console.print(f"{source}: {kind}, {architecture}, {count:,} parameters")
        folder = stack.enter_context(_whole(output))
        if flags.to == "huggingface":
            remarks = huggingface.write(foreign, folder, np.dtype(DTYPES[conversion.dtype]))
            written = str(output)
        else:
            remarks = _write(foreign, folder, output, conversion)
            written = f"{output}/{FOLDER}/{foreign.step}"
    interrupted = [
        f"{left} is what an interrupted conversion left; delete it"
        for left in sorted(output.absolute().parent.glob(f"{output.name}.partial-*"))
    ]
    for remark in (*foreign.remarks, *remarks, *interrupted):
        console.print(f"note: {remark}")
    console.print(f"wrote {written} in {time.perf_counter() - started:.0f} s")


def _read(
    path: pathlib.Path, conversion: Conversion, stack: contextlib.ExitStack
) -> tuple[Foreign, str]:
    """Returns what is at `path`, and whose format it is."""
    if (found := find_checkpoint(path)) is not None:
        return _own(found, conversion.vocabulary, stack), "t5lite"
    if (path / "config.json").is_file():
        return _with_vocabulary(huggingface.read(path), conversion), "Hugging Face"
    if t5x_files.is_checkpoint(path):
        activations = conversion.mlp_activations
        foreign = t5x.read(
            path,
            optimizer_state=conversion.optimizer_state,
            mlp_activations=None if activations is None else tuple(activations),
            encoder_attention=conversion.encoder_attention,
        )
        return _with_vocabulary(foreign, conversion), "T5X"
    if not path.exists():
        raise UserError(f"--input {path} is not there")
    holds = ", ".join(sorted(p.name for p in path.iterdir())[:5]) if path.is_dir() else "a file"
    raise UserError(
        f"--input {path} must be a folder of Hugging Face (config.json and safetensors), T5X's "
        f"checkpoint_STEP, or t5lite's MODEL_DIR or checkpoints/STEP; got {holds or 'an empty one'}"
    )


def _check_used(conversion: Conversion, kind: str, to: str) -> None:
    """Raises a UserError for a choice that this conversion would not heed."""
    usual = Conversion()
    for name, is_heeded, where in (
        ("optimizer_state", kind == "T5X" and to == "t5lite", "T5X to t5lite"),
        ("mlp_activations", kind == "T5X", "T5X"),
        ("encoder_attention", kind == "T5X", "T5X"),
        ("dtype", to == "huggingface", "what is written --to=huggingface"),
    ):
        if not is_heeded and getattr(conversion, name) != getattr(usual, name):
            raise UserError(f"convert.{name} is for {where}, got a conversion of {kind} to {to}")


def _check_vocabulary(foreign: Foreign) -> None:
    vocabulary, size = foreign.vocabulary, foreign.model.config.vocab_size
    if vocabulary is not None and vocabulary.size > size:
        raise UserError(
            f"the vocabulary has {vocabulary.size} ids ({vocabulary.num_sentinels} sentinels "
            f"included) and the model {size}; name its own as convert.vocabulary"
        )


def _with_vocabulary(foreign: Foreign, conversion: Conversion) -> Foreign:
    if conversion.vocabulary is None:
        return foreign
    return dataclasses.replace(foreign, vocabulary=conversion.vocabulary)


def _own(folder: str, vocabulary: Vocabulary | None, stack: contextlib.ExitStack) -> Foreign:
    checkpoints, step = stack.enter_context(open_checkpoint(folder))
    about = checkpoints.about(step)
    model, params = model_of(about, folder), stored_params(checkpoints, step)
    if vocabulary is None and about.get("vocabulary") is not None:
        model_dir = pathlib.Path(folder).absolute().parent.parent
        vocabulary = vocabulary_from_description(about["vocabulary"], model_dir)
    shapes = {name: tuple(box.value.shape) for name, box in parameters(model).items()}
    check_names(folder, list(shapes), list(params))
    for name, shape in shapes.items():
        check_array(folder, name, shape, params[name])
    return Foreign(
        model=model,
        params=params,
        step=step,
        vocabulary=vocabulary,
    )


@contextlib.contextmanager
def _whole(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write in that becomes `output` if all goes well, and else disappears."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} is there already; name a folder that is not")
    if output.is_symlink():
        raise UserError(f"--output {output} is a link; name the folder itself")
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{output.name}.partial-", dir=output.parent))
    try:
        # As other folders are made; temporary ones are for their owner alone.
        os.umask(mask := os.umask(0))
        partial.chmod(0o777 & ~mask)
        yield partial
        try:
            if output.is_dir():
                output.rmdir()
            partial.rename(output)
        except OSError as error:
            raise UserError(
                f"--output {output} was made by another while this ran: {error.strerror}"
            ) from error
    finally:
        # Threads that Orbax left behind may write once more while it is being removed.
        for _ in range(20):
            shutil.rmtree(partial, ignore_errors=True)
            if not partial.exists():
                break
            time.sleep(0.1)


def _write(
    foreign: Foreign, folder: pathlib.Path, output: pathlib.Path, conversion: Conversion
) -> list[str]:
    """Writes a checkpoint of t5lite, its model's gin file and its vocabulary."""
    vocabulary, path = foreign.vocabulary, str((output / VOCABULARY_FILE).absolute())
    described = None if vocabulary is None else vocabulary.describe()
    if described is not None and isinstance(vocabulary, SentencePieceVocabulary):
        shutil.copyfile(described["path"], folder / VOCABULARY_FILE)
        described["path"] = VOCABULARY_FILE
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
    """Returns what a checkpoint of t5lite holds, each array with its place on the mesh."""
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
