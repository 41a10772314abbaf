"""`t5lite convert`."""

import contextlib
import dataclasses
import itertools
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
from t5lite.cli.convert_input import T5LITE, read_input
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import COPY_BESIDE, MODEL_FILE, VOCABULARY_COPY
from t5lite.cli.work_progress import WorkProgress
from t5lite.core.counts import counted
from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.interop.adaptation import adapt
from t5lite.interop.conversion import Conversion
from t5lite.interop.families import transformers_class
from t5lite.interop.foreign import Foreign
from t5lite.interop.huggingface import write_huggingface
from t5lite.interop.kept import KEPT_FILE, write_kept
from t5lite.interop.merging import merge_adapters
from t5lite.interop.model_gin import model_gin
from t5lite.interop.peft_files import write_peft
from t5lite.models.config_fields import DTYPES
from t5lite.models.description import describe
from t5lite.models.model import parameters
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import state_axes, tree_shardings
from t5lite.training.about import LENGTHS
from t5lite.training.base_checkpoint import BASE, Base
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.lazy_checkpoints import write_lazily

# A value of --to.
PEFT = "peft"


def convert_command(flags: Any, bindings: Sequence[str]) -> None:
    """Reads a checkpoint of any supported format and writes it for t5lite or Hugging Face.

    Adapters are merged into their base, unless they are written for PEFT or
    `convert.merge_adapters` is False. With `--adapt`, what is written is an encoder-decoder made
    from a decoder-only model.

    Raises:
        UserError: if the input is no checkpoint, the output exists, or a flag or a binding of
            `convert` would have no effect on this conversion.
    """
    quiet_libraries()
    if flags.input is None or flags.output is None:
        missing = "--input" if flags.input is None else "--output"
        raise UserError(f"convert needs {missing}=FOLDER")
    if flags.adapt_encoder is not None and flags.adapt is None:
        raise UserError("--adapt_encoder needs --adapt=encoder_decoder, got none")
    (conversion,) = configurables.load(flags.gin_file, bindings, flags.gin_search_paths, "convert")
    console = rich.console.Console(highlight=False, soft_wrap=True, markup=False)
    source, output = (pathlib.Path(path).expanduser() for path in (flags.input, flags.output))
    _check_output(output)
    started = time.perf_counter()
    progress = WorkProgress(beginning=None)
    with contextlib.ExitStack() as stack:
        foreign, kind, base = read_input(source, conversion, flags.parameters, base=flags.base)
        kinds = [kind]
        encoder = None
        if flags.adapt_encoder is not None:
            path = pathlib.Path(flags.adapt_encoder).expanduser()
            encoder, kind_of_encoder, _ = read_input(
                path, conversion, flags.parameters, flag="--adapt_encoder"
            )
            kinds.append(kind_of_encoder)
        if flags.parameters is not None and T5LITE not in kinds:
            raise UserError(
                f"--parameters={flags.parameters} has no effect on {' and '.join(kinds)} "
                "checkpoints; leave it out"
            )
        has_adapters = bool(foreign.model.config.adapters)
        conversion.check_used(
            kinds, to=flags.to, adapts=flags.adapt is not None, has_adapters=has_adapters
        )
        if has_adapters and conversion.merge_adapters and flags.to != PEFT:
            foreign = merge_adapters(foreign)
            base = None
        if flags.adapt is not None:
            foreign = adapt(
                foreign,
                encoder,
                form=flags.adapt,
                cross_positions=conversion.cross_positions,
                seed=conversion.seed,
            )
        _check_vocabulary(foreign)
        count = sum(array.size for array in foreign.params.values())
        what = f"{type(foreign.model).__name__}{_of_family(foreign)}"
        console.print(f"{source}: {kind}, {what}, {counted(count, 'parameter')}")
        folder = stack.enter_context(_partial_folder(output))
        stack.enter_context(progress)
        foreign = _with_progress(foreign, progress)
        if flags.to == "huggingface":
            remarks = write_huggingface(
                foreign,
                folder,
                np.dtype(DTYPES[conversion.dtype]),
                max_input_tokens=conversion.max_input_tokens,
                max_target_tokens=conversion.max_target_tokens,
            )
            written = str(output)
        elif flags.to == PEFT:
            remarks = write_peft(foreign, folder, conversion.base_name)
            written = str(output)
        else:
            remarks = _write(foreign, folder, output, conversion, base)
            written = f"{output}/{FOLDER}/{foreign.step}"
    interrupted = [
        f"an interrupted conversion left {left}; delete it"
        for left in sorted(output.absolute().parent.glob(f"{output.name}.partial-*"))
    ]
    for remark in (*foreign.remarks, *remarks, *interrupted):
        console.print(f"note: {remark}")
    console.print(f"wrote {written} in {time.perf_counter() - started:.0f} s")


def _of_family(foreign: Foreign) -> str:
    """Returns of which family a model is: that of its file, or the one that it is written as."""
    family = foreign.family
    if family is None and (found := transformers_class(foreign.model)) is not None:
        family = found.family
    return "" if family is None else f" of the family {family}"


def _with_progress(foreign: Foreign, progress: WorkProgress) -> Foreign:
    """Returns the same checkpoint; `progress` counts its arrays as they are read."""
    total = len(foreign.params)
    progress.report("arrays", 0, total)
    done = itertools.count(1)

    def counted_array(array: LazyArray) -> LazyArray:
        def load() -> np.ndarray:
            loaded = array.load()
            progress.report("arrays", next(done), total)
            return loaded

        return dataclasses.replace(array, load=load)

    params = {name: counted_array(array) for name, array in foreign.params.items()}
    return dataclasses.replace(foreign, params=params)


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
    foreign: Foreign,
    folder: pathlib.Path,
    output: pathlib.Path,
    conversion: Conversion,
    base: Base | None,
) -> list[str]:
    """Writes a t5lite checkpoint, the gin file of its model and its vocabulary.

    Args:
        base: of the checkpoint, whose parameters are not written.
    """
    vocabulary = foreign.vocabulary
    described = None if vocabulary is None else vocabulary.describe()
    if described is not None and "path" in described:
        shutil.copyfile(described["path"], folder / VOCABULARY_COPY)
        described["path"] = VOCABULARY_COPY
    about: dict[str, Any] = {
        "model": describe(foreign.model),
        "vocabulary": described,
        "vocabulary_fingerprint": None if vocabulary is None else vocabulary.fingerprint,
    }
    if foreign.lengths:
        about[LENGTHS] = dict(foreign.lengths)
    state = _state(foreign, conversion.mesh.make())
    if base is not None:
        state = base.without(state)
        about[BASE] = base.describe()
    write_lazily(folder, foreign.step, state, about)
    (folder / MODEL_FILE).write_text(model_gin(foreign.model, vocabulary, COPY_BESIDE))
    remarks = []
    if foreign.kept is not None:
        write_kept(folder, foreign.kept)
        remarks.append(
            f"{counted(len(foreign.kept.tensors), 'tensor')} for images are kept unchanged in "
            f"{KEPT_FILE}; --to=huggingface writes them back from a folder that holds it"
        )
    remarks.append(
        f"to train from it, add --gin_file={output}/{MODEL_FILE} and "
        f"--gin.train.initial_checkpoint={output}/{FOLDER}/{foreign.step} to a run file's command"
    )
    return remarks


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
