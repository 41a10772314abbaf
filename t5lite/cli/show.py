"""What a trained model makes of a few examples, for a person to read."""

from typing import Any

import jax
import numpy as np
import rich.console
import rich.text

from t5lite.data.statistics import unigram_entropy
from t5lite.data.stream import eval_batches
from t5lite.data.task import Task
from t5lite.data.vocabularies import Vocabulary
from t5lite.inference.evaluate import make_evaluate
from t5lite.inference.sampling import greedy
from t5lite.models.architectures import EncoderDecoder, EncoderOnly
from t5lite.objectives.span_corruption import SpanCorruption, fill_spans
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.sharding import batch_sharding, local_rows, make_global, on_mesh
from t5lite.training.run import Run


def show_examples(run: Run, mesh: DeviceMesh, params: Any) -> None:
    """Prints how well the evaluation text is predicted, and its first examples filled in.

    Of a model that is no encoder-decoder, or an objective without spans, no examples.
    """
    console = rich.console.Console(quiet=jax.process_index() > 0, highlight=False, soft_wrap=True)
    if isinstance(run.model, EncoderOnly) and run.model.classes is not None:
        console.print("examples are shown of models that write text; this one decides on classes")
        return
    task, split = run.task, run.eval_split
    # Sentinels and ends of sequence are easy to predict, and no part of the text.
    evaluate = make_evaluate(
        run.model,
        task,
        run.layout,
        run.loss,
        mesh,
        split=split,
        batch_size=run.batch_size,
        counted=task.vocabulary.is_text,
    )
    text = evaluate(params)["cross_entropy_nats_per_token"]
    console.print(f"cross-entropy of tokens of the text alone: {text:.4f} nats per token")
    for part in task.tasks:
        entropy = unigram_entropy(part, split)
        name = "" if part is task else f"{part.name}: "
        console.print(f"{name}entropy of the tokens of the same text: {entropy:.4f} nats per token")
    if not (
        isinstance(run.model, EncoderDecoder)
        and isinstance(task, Task)
        and isinstance(task.objective, SpanCorruption)
    ):
        return
    model, length = run.model, task.objective.targets_length
    sharding = batch_sharding(mesh, run.batch_size)
    rows, place = local_rows(sharding, run.batch_size), make_global(sharding, run.batch_size)
    batch = next(eval_batches(task, split, run.layout, rows=rows, batch_size=run.batch_size))
    write = jax.jit(
        lambda params, batch: (
            greedy(model, params, batch, length=length, stop_ids=(task.vocabulary.eos_id,)),
            batch["encoder_input_tokens"],
            batch["decoder_target_tokens"],
        ),
        out_shardings=jax.NamedSharding(mesh.devices, jax.P()),
    )
    # Written token by token, so there is no length to split.
    with on_mesh(mesh.without("length")):
        predicted, inputs, targets = jax.device_get(write(params, place(batch)))
    for row in range(min(run.show_examples, len(predicted))):
        console.print(f"\nexample {row + 1}: spans in brackets", style="bold")
        console.print("  model: ", _filled(inputs[row], predicted[row], task.vocabulary))
        console.print("  text:  ", _filled(inputs[row], targets[row], task.vocabulary))


def _filled(inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary) -> rich.text.Text:
    text = rich.text.Text()
    for is_span, tokens in fill_spans(inputs, targets, vocabulary):
        piece = vocabulary.decode(tokens).replace("\n", "\u23ce")
        text.append(f"[{piece}]" if is_span else piece, style="bold green" if is_span else "")
    return text
