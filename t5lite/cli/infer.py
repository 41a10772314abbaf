"""`t5lite infer`."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from t5lite.cli.adapters import adapter_models, adapter_params, bind_adapters, chosen_adapters
from t5lite.cli.class_inference import check_class_flags, class_objective
from t5lite.cli.input_file import check_requests, valid_requests
from t5lite.cli.paths import user_path
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.run_files import load_roots, saved_vocabulary
from t5lite.cli.selection import LATEST, ChosenCheckpoint, check_bases, chosen_checkpoints
from t5lite.cli.work_progress import WorkProgress
from t5lite.core.counts import counted
from t5lite.core.errors import UserError
from t5lite.data.text import preprocessors
from t5lite.data.text.vocabulary import Vocabulary
from t5lite.inference.answers import (
    Answer,
    ClassRequestEncoder,
    RequestEncoder,
    make_class_answer,
    make_predict_answer,
    make_score_answer,
)
from t5lite.inference.class_predictions import make_predict_classes
from t5lite.inference.infer import (
    STANDARD_OUTPUT,
    ResultFile,
    ResultStream,
    ResultWriter,
    check_free,
    infer,
)
from t5lite.inference.predict import make_predict
from t5lite.inference.requests import Inference, fingerprint
from t5lite.inference.score import make_score
from t5lite.models.description import describe, model_of
from t5lite.models.model import Model, generative
from t5lite.models.row_adapters import BindRows
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.peers import lost_peers_named
from t5lite.parallel.processes import start_processes
from t5lite.training.run import Run
from t5lite.training.state import abstract_params

DEFAULT_INPUTS_LENGTH = 512
DEFAULT_TARGETS_LENGTH = 128
# What only one mode reads, as gin binds it.
_OF_MODE = {
    "predict": ("infer.decoding", "infer.num_best", "infer.distinct", "infer.seed", "Decoding."),
    "score": ("infer.targets",),
}


@lost_peers_named()
def infer_command(flags: Any, bindings: Sequence[str]) -> None:
    """Generates targets for all objects of a file, or scores their targets.

    Raises:
        UserError: for a missing flag or checkpoint, a flag that the mode does not read, an output
            that exists, or, unless `infer.bad_objects` is "skip", an invalid object.
    """
    quiet_libraries()
    for name in ("input", "output"):
        if getattr(flags, name) is None:
            raise UserError(f"infer needs --{name}=FILE")
    _check_read(flags.mode, bindings)
    trained, inference = _load(flags, bindings)
    start_processes()
    output = flags.output
    if output != STANDARD_OUTPUT:
        output = str(user_path("--output", output))
    # Before anything large is read. Other processes may see other disks.
    if jax.process_index() == 0:
        check_free(output)
    model_dir = None if trained is None else trained.model_dir
    adapters = chosen_adapters(flags)
    chosen = list(adapters.values()) or chosen_checkpoints(
        model_dir, flags.checkpoint, flags.average, flags.parameters, base=flags.base
    )
    check_bases(chosen, flags.base)
    if len(chosen) != 1 and not adapters:
        raise UserError(f"infer takes one checkpoint, got {len(chosen)}")
    model, vocabulary = _model_and_vocabulary(trained, inference, chosen[0])
    models = adapter_models(adapters, model)
    bind_rows = bind_adapters(adapters, models, vocabulary) if adapters else None
    encoder = _encoder(flags, bindings, trained, inference, model, vocabulary, tuple(adapters))
    total = check_requests(flags, inference, encoder)
    mesh = inference.mesh.make()
    answer = _make_answer(flags.mode, model, vocabulary, mesh, inference, encoder, bind_rows)
    writer: ResultWriter = ResultStream()
    if output != STANDARD_OUTPUT:
        identity = _identity(flags, inference, encoder, chosen[0], model, vocabulary)
        if adapters:
            identity["adapters"] = {
                name: [one.path, list(one.steps), one.saved_at] for name, one in adapters.items()
            }
        writer = ResultFile(pathlib.Path(output), identity)
    progress = WorkProgress()
    progress.log(f"restoring {chosen[0].path}")
    if adapters:
        params = adapter_params(adapters, models, mesh)
    else:
        params = chosen[0].params(abstract_params(model, mesh))
    with progress:
        if writer.done:
            progress.log(f"resuming after {counted(writer.done, 'result')}")
        progress.report(flags.mode, writer.done, total)
        infer(
            valid_requests(flags, inference, encoder),
            writer,
            functools.partial(answer, params),
            chunk_size=inference.chunk_size,
            on_done=lambda done: progress.report(flags.mode, done, total),
        )
        where = "the standard output" if output == STANDARD_OUTPUT else output
        progress.log(f"wrote {counted(total, 'result')} to {where}")


def _check_read(mode: str, bindings: Sequence[str]) -> None:
    """Raises a UserError for a flag that only the other mode reads. Gin files serve both."""
    for binding in bindings:
        flag = binding.partition("=")[0].strip()
        name = flag.rpartition("/")[2].removeprefix("t5lite.")
        for other, names in _OF_MODE.items():
            if other != mode and (name in names or f"{name.partition('.')[0]}." in names):
                raise UserError(
                    f"--gin.{flag} has no effect with --mode={mode}; leave it out, or use "
                    f"--mode={other}"
                )


def _load(flags: Any, bindings: Sequence[str]) -> tuple[Run | None, Inference]:
    """Returns the run that the run file describes, if there is one, and what to do."""
    if flags.gin_file:
        trained, inference = load_roots(flags, bindings, "train", "infer")
        return trained, inference
    if flags.checkpoint == LATEST and not flags.adapter:
        raise UserError(
            "infer needs --checkpoint=RUN, a checkpoint or a Hugging Face folder, or the "
            "--gin_file of a run"
        )
    (inference,) = load_roots(flags, bindings, "infer")
    return None, inference


def _model_and_vocabulary(
    trained: Run | None, inference: Inference, chosen: ChosenCheckpoint
) -> tuple[Model, Vocabulary]:
    """Returns those of the run or, without a run file, those that the checkpoint describes."""
    vocabulary = inference.vocabulary
    if trained is not None:
        model: Model = trained.model
        vocabulary = vocabulary or trained.task.vocabulary
        chosen.check_same(model, vocabulary)
    else:
        model = model_of(chosen.about, chosen.path)
        if vocabulary is None:
            try:
                vocabulary = saved_vocabulary(chosen.about, pathlib.Path(chosen.path).parents[1])
            except UserError as error:
                raise UserError(
                    f"{error}; name its file by --gin.infer.vocabulary=@SentencePieceVocabulary() "
                    "--gin.SentencePieceVocabulary.path=FILE"
                ) from error
        # The file may have been replaced by another vocabulary.
        chosen.check_vocabulary(vocabulary)
    if inference.dtype is not None:
        model = model.clone(config=dataclasses.replace(model.config, dtype=inference.dtype))
    return model, vocabulary


def _encoder(
    flags: Any,
    bindings: Sequence[str],
    trained: Run | None,
    inference: Inference,
    model: Model,
    vocabulary: Vocabulary,
    adapters: Sequence[str],
) -> RequestEncoder:
    """Returns what makes the examples that a model reads.

    Args:
        adapters: names of those that objects may choose.
    """
    length = "inputs_length" if model.classes is None else "part_length"
    inputs_length = inference.inputs_length or _longest(trained, length, DEFAULT_INPUTS_LENGTH)
    if model.classes is not None:
        check_class_flags(flags.mode, bindings)
        tasks = () if trained is None else trained.task.tasks
        objective = class_objective(model.classes, [t.objective for t in tasks], inputs_length)
        objective.check(vocabulary)
        return ClassRequestEncoder(objective, vocabulary)
    generative(model, "infer")
    return RequestEncoder(
        vocabulary,
        inputs_length,
        inference.targets_length or _longest(trained, "targets_length", DEFAULT_TARGETS_LENGTH),
        end_inputs=inference.end_inputs,
        adapters=adapters,
    )


def _identity(
    flags: Any,
    inference: Inference,
    encoder: RequestEncoder,
    chosen: ChosenCheckpoint,
    model: Model,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Returns a description of the work, by which an interrupted one is recognised."""
    settings = dataclasses.asdict(inference)
    # Results depend on mesh and batch size by rounding only; vocabulary and dtype have entries of
    # their own.
    for name in ("mesh", "batch_size", "vocabulary", "dtype"):
        del settings[name]
    objective = {}
    if isinstance(encoder, ClassRequestEncoder):
        objective["objective"] = repr(encoder.objective)
    return {
        "input": fingerprint(flags.input),
        "mode": flags.mode,
        "checkpoint": [chosen.path, list(chosen.steps)],
        **({} if chosen.which is None else {"parameters": chosen.which}),
        # Another run may have saved a checkpoint of that name since.
        "checkpoint saved at": chosen.saved_at,
        "model": {**describe(model), "dtype": model.config.dtype},
        "vocabulary": vocabulary.fingerprint,
        "steps": [preprocessors.version(step) for step in inference.preprocessors],
        "settings": {**settings, "lengths": encoder.lengths},
        **objective,
    }


def _longest(trained: Run | None, name: str, otherwise: int) -> int:
    """Returns the maximum length over the run's tasks."""
    if trained is None:
        return otherwise
    return max(getattr(task.objective, name) for task in trained.task.tasks) or otherwise


def _make_answer(
    mode: str,
    model: Model,
    vocabulary: Vocabulary,
    mesh: DeviceMesh,
    inference: Inference,
    encoder: RequestEncoder,
    bind_rows: BindRows | None,
) -> Answer:
    inputs_length, targets_length = encoder.lengths
    if isinstance(encoder, ClassRequestEncoder):
        classify = make_predict_classes(
            model,
            mesh,
            inputs_length=inputs_length,
            batch_size=inference.batch_size,
            span_length=encoder.objective.span_length,
        )
        return make_class_answer(classify, encoder)
    model = generative(model, "infer")
    if mode == "score":
        score = make_score(
            model,
            mesh,
            inputs_length=inputs_length,
            targets_length=targets_length,
            batch_size=inference.batch_size,
            bind_rows=bind_rows,
        )
        return make_score_answer(score, encoder)
    predict = make_predict(
        model,
        mesh,
        inference.decoding,
        stop_ids=vocabulary.stop_ids,
        first_ids=vocabulary.first_ids,
        inputs_length=inputs_length,
        targets_length=targets_length,
        batch_size=inference.batch_size,
        seed=inference.seed,
        bind_rows=bind_rows,
    )
    return make_predict_answer(
        predict,
        encoder,
        vocabulary,
        num_best=inference.num_best,
        distinct=inference.is_distinct,
    )
