"""`t5lite infer`."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from t5lite import configurables
from t5lite.cli.quiet import quiet_libraries
from t5lite.cli.selection import Chosen, chosen_checkpoints
from t5lite.cli.work_progress import WorkProgress
from t5lite.core.errors import UserError
from t5lite.data.text import preprocessors, vocabularies
from t5lite.data.text.vocabularies import Vocabulary
from t5lite.inference.answers import Answer, Reader, predicted, scored
from t5lite.inference.decoding import GenerativeModel, check_target_lengths
from t5lite.inference.infer import Output, check_free, infer
from t5lite.inference.predict import make_predict
from t5lite.inference.requests import Inference, fingerprint, read_requests
from t5lite.inference.score import make_score
from t5lite.models.architectures import EncoderOnly, Model
from t5lite.models.description import describe, model_of
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.processes import start_processes
from t5lite.training.run import Run
from t5lite.training.state import abstract_params


def run(flags: Any, bindings: Sequence[str]) -> None:
    """Writes targets for all objects of a file, or scores those that it has."""
    quiet_libraries()
    for name in ("input", "output"):
        if getattr(flags, name) is None:
            raise UserError(f"infer needs --{name}=FILE")
    path = pathlib.Path(flags.output).expanduser()
    trained: Run | None = None
    if flags.gin_file:
        trained, inference = configurables.load(
            flags.gin_file, bindings, flags.gin_search_paths, "train", "infer"
        )
    elif flags.checkpoint == "latest":
        raise UserError("infer needs --checkpoint=FOLDER, or the --gin_file of a run")
    else:
        (inference,) = configurables.load([], bindings, flags.gin_search_paths, "infer")
    start_processes()
    # Before much is read; other processes may see other disks.
    if jax.process_index() == 0:
        check_free(path)
    model_dir = None if trained is None else trained.model_dir
    with chosen_checkpoints(model_dir, flags.checkpoint, flags.average) as chosen:
        if len(chosen) != 1:
            raise UserError(f"infer takes one checkpoint, got {len(chosen)}")
        model, vocabulary = _model_and_vocabulary(trained, chosen[0])
        reader = Reader(
            vocabulary,
            inference.inputs_length or _longest(trained, "inputs_length", 512),
            inference.targets_length or _longest(trained, "targets_length", 128),
            end_inputs=inference.end_inputs,
        )
        total = _check_all(flags, inference, reader)
        settings = dataclasses.asdict(inference)
        # Of these nothing depends on more than rounding.
        del settings["mesh"], settings["batch_size"]
        identity = {
            "input": fingerprint(flags.input),
            "mode": flags.mode,
            "checkpoint": [chosen[0].path, list(chosen[0].steps)],
            # Another run's checkpoints may have come to stand there.
            "checkpoint saved at": chosen[0].saved_at,
            "model": describe(model),
            "vocabulary": vocabulary.fingerprint,
            "steps": [preprocessors.version(step) for step in inference.preprocessors],
            "settings": {**settings, "lengths": reader.lengths},
        }
        mesh = inference.mesh.make()
        answer = _answering(flags.mode, model, vocabulary, mesh, inference, reader)
        output = Output(path, identity)
        params = chosen[0].params(abstract_params(model, mesh))
    requests = (each for each in read_requests(flags.input, inference, flags.mode) if each)
    with WorkProgress() as progress:
        if output.done:
            progress.say(f"going on behind {output.done:,} results that are there")
        progress.at(flags.mode, output.done, total)
        infer(
            *(requests, output, functools.partial(answer, params)),
            chunk_size=inference.chunk_size,
            on_done=lambda done: progress.at(flags.mode, done, total),
        )
        progress.say(f"{total:,} results in {flags.output}")


def _model_and_vocabulary(
    trained: Run | None, chosen: Chosen
) -> tuple[GenerativeModel, Vocabulary]:
    """Returns those of the run or, where there is none, what the checkpoint says of itself."""
    if trained is not None:
        model: Model = trained.model
        vocabulary = trained.task.vocabulary
        chosen.check_same(model, vocabulary)
    else:
        model = model_of(chosen.about, chosen.path)
        # What convert writes names its files from the folder that it writes.
        folder = pathlib.Path(chosen.path).parent.parent
        vocabulary = vocabularies.vocabulary_from_description(chosen.about["vocabulary"], folder)
        # Another file may have come to stand where its own was.
        chosen.check_vocabulary(vocabulary)
    if isinstance(model, EncoderOnly):
        raise UserError("infer needs a model with a decoder, got EncoderOnly; see t5lite eval")
    return model, vocabulary


def _longest(trained: Run | None, name: str, otherwise: int) -> int:
    """Returns the longest of the run's examples."""
    if trained is None:
        return otherwise
    return max(getattr(task.objective, name) for task in trained.task.tasks) or otherwise


def _check_all(flags: Any, inference: Inference, reader: Reader) -> int:
    """Reads all requests once, says what is to be known of them, and returns how many there are.

    Raises:
        UserError: where one cannot be answered.
    """
    check_target_lengths(vars(inference.decoding), reader.lengths[1], "infer.targets_length")
    total, empty, num_cut, first_cut = 0, 0, 0, 0
    for request in read_requests(flags.input, inference, flags.mode):
        if request is None:
            empty += 1
            continue
        total += 1
        try:
            if reader.is_cut(request):
                num_cut, first_cut = num_cut + 1, first_cut or total
        except UserError as error:
            raise UserError(f"{flags.input}: object {total}: {error}") from error
    if total == 0:
        raise UserError(f"--input={flags.input} holds nothing to work on")
    inputs, targets = reader.lengths
    longer = f"longer than {inputs} tokens of inputs or {targets} of targets"
    if num_cut and inference.too_long == "refuse":
        raise UserError(
            f"{flags.input}: {num_cut:,} of {total:,} objects are {longer}, first object "
            f"{first_cut:,}; infer.too_long = 'cut' cuts them, infer.inputs_length and "
            "infer.targets_length make room"
        )
    if jax.process_index() == 0 and empty:
        print(f"{empty:,} empty lines are left out", file=sys.stderr)
    if jax.process_index() == 0 and num_cut:
        print(f"{num_cut:,} of {total:,} objects are {longer}: cut", file=sys.stderr)
    return total


def _answering(
    mode: str,
    model: GenerativeModel,
    vocabulary: Vocabulary,
    mesh: DeviceMesh,
    inference: Inference,
    reader: Reader,
) -> Answer:
    if mode == "score":
        score = make_score(
            *(model, mesh),
            inputs_length=reader.lengths[0],
            targets_length=reader.lengths[1],
            batch_size=inference.batch_size,
        )
        return scored(score, reader)
    predict = make_predict(
        *(model, mesh, inference.decoding),
        stop_ids=vocabulary.stop_ids,
        first_ids=vocabulary.first_ids,
        inputs_length=reader.lengths[0],
        targets_length=reader.lengths[1],
        batch_size=inference.batch_size,
        seed=inference.seed,
    )
    return predicted(predict, reader, vocabulary, num_best=inference.num_best)
