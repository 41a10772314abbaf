"""Predictions of a trained model for a few examples, printed for a person to read."""

import itertools
from typing import Any

import jax
import numpy as np
import rich.console
import rich.text

from t5lite.data.batching.stream import eval_examples
from t5lite.data.statistics import unigram_entropy
from t5lite.data.task import Task
from t5lite.data.text.vocabulary import Vocabulary
from t5lite.inference.decoding import Decoding
from t5lite.inference.evaluate import make_evaluate
from t5lite.inference.predict import Prompt, make_predict
from t5lite.models.model import generative
from t5lite.objectives.span_corruption import SpanCorruption, fill_spans
from t5lite.parallel.mesh import DeviceMesh
from t5lite.training.run import Run


def show_examples(run: Run, mesh: DeviceMesh, params: Any) -> None:
    """Prints the loss on plain text, and the first examples with their spans filled in.

    There are no examples for a model without an encoder and a decoder, or an objective without
    spans.
    """
    console = rich.console.Console(quiet=jax.process_index() > 0, highlight=False, soft_wrap=True)
    if run.model.classes is not None:
        console.print("this model classifies: there is no generated text to show")
        return
    task = run.task
    split = run.eval_split
    # Sentinels and ends of sequence are easy to predict and not part of the text.
    evaluate = make_evaluate(
        run.model,
        task,
        run.layout,
        run.evaluation_loss,
        mesh,
        split=split,
        # The number of rows that training has in memory at a time.
        batch_size=run.batch_size // run.microbatches,
        counted=task.vocabulary.is_text,
    )
    text = evaluate(params)["cross_entropy_nats_per_token"]
    console.print(f"cross-entropy of text tokens: {text:.4f} nats per token")
    for part in task.tasks:
        entropy = unigram_entropy(part, split)
        name = "" if part is task else f"{part.name}: "
        console.print(f"{name}unigram entropy of the same tokens: {entropy:.4f} nats per token")
    if not (
        run.model.has_encoder
        and run.model.has_decoder
        and isinstance(task, Task)
        and isinstance(task.objective, SpanCorruption)
    ):
        return
    examples = list(itertools.islice(eval_examples(task, split), run.show_examples))
    predict = make_predict(
        generative(run.model, "train.show_examples"),
        mesh,
        Decoding(),
        stop_ids=task.vocabulary.stop_ids,
        first_ids=task.vocabulary.first_ids,
        inputs_length=task.objective.inputs_length,
        targets_length=task.objective.targets_length,
        batch_size=run.batch_size // run.microbatches,
    )
    targets = predict(params, [Prompt(inputs=example["inputs"]) for example in examples])
    for number, (example, (best, *_)) in enumerate(zip(examples, targets, strict=True), start=1):
        console.print(f"\nexample {number}: spans in brackets", style="bold")
        console.print("  model: ", _filled(example["inputs"], best.tokens, task.vocabulary))
        console.print("  text:  ", _filled(example["inputs"], example["targets"], task.vocabulary))


def _filled(inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary) -> rich.text.Text:
    text = rich.text.Text()
    for number, (is_span, tokens) in enumerate(fill_spans(inputs, targets, vocabulary)):
        decode = vocabulary.decode_after if number else vocabulary.decode_pieces
        piece = decode(tokens[vocabulary.is_text(tokens)]).replace("\n", "\u23ce")
        text.append(f"[{piece}]" if is_span else piece, style="bold green" if is_span else "")
    return text
