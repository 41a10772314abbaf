"""What a trained model makes of a few examples, for a person to read."""

from typing import Any

import jax
import numpy as np
import rich.console
import rich.text

from t5lite.data.statistics import unigram_entropy
from t5lite.data.stream import eval_batches
from t5lite.data.vocabularies import Vocabulary
from t5lite.inference.generate import greedy
from t5lite.models.architectures import EncoderDecoder
from t5lite.objectives.span_corruption import SpanCorruption, fill_spans
from t5lite.parallel.sharding import batch_sharding, local_rows, make_global, on_mesh
from t5lite.training.run import Run


def show_examples(run: Run, mesh: jax.sharding.Mesh, params: Any) -> None:
    """Prints the entropy of the evaluation text, and its first examples as the model fills them in.

    Of a model that is no encoder-decoder, or an objective without spans, only the entropy.
    """
    console = rich.console.Console(highlight=False, quiet=jax.process_index() != 0)
    task, split = run.task, run.eval_split
    entropy = unigram_entropy(task, split)
    console.print(f"entropy of the tokens of the same text: {entropy:.4f} nats per token")
    if not (isinstance(run.model, EncoderDecoder) and isinstance(task.objective, SpanCorruption)):
        return
    model, length = run.model, task.objective.targets_length
    sharding = batch_sharding(mesh, run.batch_size)
    rows, place = local_rows(sharding, run.batch_size), make_global(sharding, run.batch_size)
    batch = next(eval_batches(task, split, rows=rows, batch_size=run.batch_size))
    write = jax.jit(
        lambda params, batch: greedy(
            model, params, batch, length=length, eos_id=task.vocabulary.eos_id
        ),
        out_shardings=jax.NamedSharding(mesh, jax.P()),
    )
    with on_mesh(mesh):
        predicted = np.asarray(write(params, place(batch)))
    for row in range(min(run.show_examples, len(predicted))):
        inputs, targets = batch["encoder_input_tokens"][row], batch["decoder_target_tokens"][row]
        console.print(f"\nexample {row + 1}: spans in brackets", style="bold")
        console.print("  model: ", _filled(inputs, predicted[row], task.vocabulary))
        console.print("  text:  ", _filled(inputs, targets, task.vocabulary))


def _filled(inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary) -> rich.text.Text:
    text = rich.text.Text()
    for is_span, tokens in fill_spans(inputs, targets, vocabulary):
        piece = vocabulary.decode(tokens).replace("\n", "\u23ce")
        text.append(f"[{piece}]" if is_span else piece, style="bold green" if is_span else "")
    return text
