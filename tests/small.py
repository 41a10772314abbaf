"""The smallest models, batches and runs that still have every part."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.data.batching.features import DecoderLayout, EncoderDecoderLayout, Layout
from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.inference.evaluate import Evaluator, make_evaluate
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.config import T5Config
from t5lite.models.initializers import Parameter
from t5lite.models.model import Model, parameter_tree
from t5lite.objectives.causal import Causal
from t5lite.objectives.span_corruption import SpanCorruption
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.parallel.mesh import POPULATION, DeviceMesh, Mesh
from t5lite.parallel.rules import MESH_AXES
from t5lite.training import loop, vectorized_loop
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.program import TrainProgram, train_program
from t5lite.training.run import Run
from t5lite.training.state import TrainState, initial_state
from t5lite.training.step import CompiledStep, compile_once

# Seconds that tests wait for a process: machines differ by ten times.
PATIENCE = 1200

# What a small run is scored on: a few records, since the cost of a run is mostly that of scoring.
EVALUATED = "validation[:3]"

# Of a quickstart with the smallest model that trains in a second or two.
QUICKSTART = (
    "--gin_file=gin/run/quickstart.gin",
    "--gin.BATCH_SIZE=8",
    "--gin.T5Config.embed_dim=16",
    "--gin.T5Config.mlp_dim=16",
    "--gin.T5Config.num_heads=2",
    "--gin.T5Config.head_dim=8",
    "--gin.T5Config.num_encoder_layers=1",
    "--gin.T5Config.num_decoder_layers=1",
    "--gin.SpanCorruption.inputs_length=32",
    "--gin.Cosine.warmup_steps=2",
    "--gin.train.log_every_steps=1",
    "--gin.evaluate.batch_size=64",
    f"--gin.train.eval_split={EVALUATED}",
)

# The description of first values that are computed from other parameters.
COMPUTED = "from the kernel"

CONFIG = T5Config(
    vocab_size=384,
    embed_dim=16,
    num_heads=2,
    head_dim=6,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dtype="float32",
)


def config(**changes: Any) -> T5Config:
    """Two layers, heads that do not divide the width, and what is to be different."""
    return dataclasses.replace(CONFIG, **changes)


def decoder_config(**changes: Any) -> T5Config:
    """The same without an encoder."""
    return config(num_encoder_layers=0, **changes)


def batch(seed: int, *, rows: int = 4, inputs: int = 10, targets: int = 6) -> dict[str, Any]:
    """A random batch whose rows end in padding, the first one excepted."""
    rng = np.random.default_rng(seed)
    input_lengths = np.append(inputs, rng.integers(3, inputs, rows - 1))
    target_lengths = np.append(targets, rng.integers(2, targets, rows - 1))

    def segments(lengths: np.ndarray, length: int) -> np.ndarray:
        return (np.arange(length) < lengths[:, None]).astype(np.int32)

    encoder, decoder = segments(input_lengths, inputs), segments(target_lengths, targets)
    tokens = rng.integers(3, 259, (rows, targets)).astype(np.int32) * decoder
    return {
        "encoder_input_tokens": rng.integers(3, 259, encoder.shape).astype(np.int32) * encoder,
        "encoder_segment_ids": encoder,
        "decoder_input_tokens": np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
        "decoder_segment_ids": decoder,
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": decoder,
    }


def logits(model: Model, params: Any, batch: dict[str, Any], **arguments: Any) -> jax.Array:
    """The model's logits of a NumPy batch."""
    return _compiled(model)(params, jax.tree.map(jnp.asarray, batch), **arguments)


@functools.cache
def _compiled(model: Model) -> Any:
    return jax.jit(lambda params, b, **arguments: model.apply({"params": params}, b, **arguments))


@functools.cache
def params(model: Model, seed: int = 0, *, uneven: float = 0.5) -> Any:
    """Random parameters of the scales that the model initialises.

    NumPy draws them, because compiling the initialisation takes longer than most tests.

    Args:
        uneven: scales of norms and biases differ from their first values by up to this.
    """
    boxed = parameter_tree(model)
    rng = np.random.default_rng(seed)

    def draw(path: Any, box: Parameter) -> jax.Array:
        if box.initializer == COMPUTED:
            return jnp.ones(box.value.shape)
        # Such as "normal, std 0.25" and "constant 1".
        kind, number = box.initializer.split()[-2:]
        shape = box.value.shape
        values = float(number) * (rng.normal(size=shape) if kind == "std" else np.ones(shape))
        if uneven and path[-1].key in ("scale", "bias", "logits_bias"):
            values += rng.uniform(-uneven, uneven, shape)
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, boxed, is_leaf=_is_parameter)


def _is_parameter(leaf: object) -> bool:
    return isinstance(leaf, Parameter)


def program_of(run: Run) -> TrainProgram:
    """The program of a run on `mesh(run)`, of which NumPy draws the first parameters."""
    return with_drawn_params(train_program(run, mesh(run)))


def with_drawn_params(program: TrainProgram) -> TrainProgram:
    """The same program, of which NumPy draws the first parameters.

    Compiling their initialisation takes as long as compiling the step.
    """
    run = program.run
    boxes = jax.tree.leaves(parameter_tree(run.model), is_leaf=_is_parameter)
    if any(box.initializer == COMPUTED for box in boxes):
        return program
    choices = (run.param_dtype, run.trainable, run.base_dtype)
    state = jax.jit(
        lambda params, hyper: initial_state(
            run.model, hyper, program.param_axes, *choices, params=params
        ),
        out_shardings=jax.tree.map(lambda x: x.sharding, program.state),
    )

    def init(hyper: Hyperparameters) -> TrainState:
        drawn = params(run.model, int(hyper.seed), uneven=0.0)
        # On no device, whatever mesh drew them first.
        return state(jax.device_get(drawn), hyper)

    return dataclasses.replace(program, init=init)


def task(text: pathlib.Path, data_dir: str, *, causal: bool = False) -> Task:
    """Span corruption, or causal language modelling, of the bytes of a file."""
    return Task(
        source=FileSource(files={"train": str(text), "validation": str(text)}, data_dir=data_dir),
        vocabulary=ByteVocabulary(),
        objective=Causal(targets_length=24) if causal else SpanCorruption(inputs_length=24),
    )


def layout(*, causal: bool = False) -> Layout:
    """Of `task`."""
    return DecoderLayout(24) if causal else EncoderDecoderLayout(24, 6)


def mesh(run: Run) -> DeviceMesh:
    """As many devices as the run asks for: one, which is fastest, where it says nothing of them."""
    sizes = [getattr(run.mesh, axis) or 1 for axis in (*MESH_AXES, POPULATION)]
    is_silent, takes_all = run.mesh == Mesh(), -1 in sizes
    count = 1 if is_silent else len(jax.devices()) if takes_all else math.prod(sizes)
    return run.mesh.make(jax.devices()[:count])


def evaluate_of(run: Run) -> Evaluator:
    """What a run is evaluated by while it trains, on `mesh(run)`."""
    return make_evaluate(
        *(run.model, run.task, run.layout, run.evaluation_loss, mesh(run)),
        split=run.eval_split,
        batch_size=run.batch_size,
    )


_shared: list[tuple[Any, Any, Callable[[], CompiledStep]]] = []


def shared_programs(program: TrainProgram) -> tuple[TrainProgram, Callable[[], CompiledStep]]:
    """A program and its compiled step; in all tests of a process, runs of one program share both.

    Its step is compiled when the function is called.
    """
    run = program.run
    hyper, structure = jax.tree.flatten(program.hyper)
    shapes = [(x.shape, x.dtype) for x in hyper]
    choices = (run.model, run.microbatches, run.trainable, run.offload_optimizer, program.mesh)
    key = (structure, shapes, jax.tree.flatten(program.state), program.batch, choices)
    for other, init, compiled in _shared:
        if other == key and not program.frozen:
            return dataclasses.replace(program, init=init), compiled
    compiled = compile_once(program, lambda line: None)
    _shared.append((key, program.init, compiled))
    return program, compiled


def train(run: Run, *, shared: bool = True) -> TrainState:
    """Trains on `mesh(run)`, with evaluations, and returns what came of it.

    Args:
        shared: whether the step may be that of an earlier run of the same program.
    """
    program = program_of(run)
    pathlib.Path(run.model_dir).mkdir(exist_ok=True)
    config_text = "# all that was in force\n"
    with pytest.MonkeyPatch.context() as patch:
        if shared:
            program, compiled = shared_programs(program)
            patch.setattr(loop, "compile_once", lambda program, log: compiled)
        return loop.train(program, evaluate=evaluate_of(run), config_text=config_text)


def train_vectorized(*args: Any, **choices: Any) -> None:
    """Trains trials in one program from the same first parameters as `train`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            vectorized_loop,
            "train_program",
            lambda run, mesh: with_drawn_params(train_program(run, mesh)),
        )
        vectorized_loop.train_vectorized(*args, **choices)


def run(text: pathlib.Path, data_dir: str, model_dir: pathlib.Path, **changes: Any) -> Run:
    """A run of a few steps with a log line for each."""
    causal = changes.pop("causal", False)
    model = DecoderOnly(decoder_config()) if causal else EncoderDecoder(config())
    choices: dict[str, Any] = {
        "model": model,
        "task": task(text, data_dir, causal=causal),
        "optimizer": make_optimizer(optax.adamw, name="AdamW", learning_rate=1e-2),
        "model_dir": str(model_dir),
        "total_steps": 6,
        "batch_size": 8,
        "log_every_steps": 1,
        "checkpoint_every_steps": 3,
    }
    return Run(**{**choices, **changes})


# What an evaluation that is of no interest returns.
NO_SCORES = dict.fromkeys(
    (
        "loss_nats_per_token",
        "cross_entropy_nats_per_token",
        "perplexity",
        "accuracy_fraction",
        "target_tokens",
    ),
    0.0,
)
