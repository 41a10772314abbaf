"""A base in bfloat16 or int8 while adapters train: values, gradients, memory, runs that resume."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.core.numbers import as_inputs
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.adapted_maps import added_names
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.lora import LoRA
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.training.base_dtype import check_left_out, stored_base, with_float_kernels
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.restore import new_state
from t5lite.training.state import TrainState, initial_opt_state, params_and_axes
from t5lite.training.step import make_train_step
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small

TRAINED = (".*/lora_(down|up|magnitude)",)
DORA = (LoRA(rank=2, decomposed=True),)
SCALE = "kernel_scale"
# Sums of float32 in another order, of the largest gradient.
ROUNDING = 1e-5


def compiled_step(model, params):
    """A state before a step of gradient descent, the step's numbers, and the step."""
    numbers = as_inputs(
        Hyperparameters(
            optimizer=make_optimizer(optax.sgd, name="SGD", learning_rate=1.0),
            loss=CrossEntropy(),
            seed=np.int32(0),
            dropout_rate=None,
            max_gradient_norm=None,
        )
    )
    _, axes = params_and_axes(model)
    state = TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        opt_state=initial_opt_state(numbers, params, axes, TRAINED),
    )
    batch = {name: x for name, x in small.batch(3).items() if name.startswith("decoder")}
    step = jax.jit(make_train_step(model, axes, trainable=TRAINED))
    return (numbers, state, batch), step.lower(numbers, state, batch).compile()


@pytest.mark.proof
def test_gradients_and_memory_of_an_int8_base(rng):
    model = DecoderOnly(small.decoder_config(adapters=DORA, embed_dim=32, mlp_dim=64))
    params = by_name(small.params(model))
    for name in params:
        if name.endswith("lora_up"):
            params[name] = jnp.asarray(rng.normal(size=params[name].shape), jnp.float32)
    tree = flax.traverse_util.unflatten_dict(params, sep="/")
    stored, kernels = stored_base(model, tree, TRAINED, "int8")
    values = with_float_kernels(model, by_name(stored))
    wide = {n: x.astype(jnp.float32) for n, x in values.items() if not n.endswith(SCALE)}
    sizes, after = [], []
    for each in (stored, flax.traverse_util.unflatten_dict(wide, sep="/")):
        given, step = compiled_step(model, each)
        new, _ = step(*given)
        after.append(by_name(new.params))
        sizes.append(step.memory_analysis().argument_size_in_bytes)
    moved = [{n: np.float64(x[n]) - params[n] for n in added_names(model)} for x in after]
    largest = max(np.abs(x).max() for x in moved[1].values())
    assert largest > 0
    for name, wanted in moved[1].items():
        np.testing.assert_allclose(moved[0][name], wanted, rtol=0, atol=ROUNDING * largest)
    base = by_name(stored)
    saved = sum(3 * base[n].size for n in kernels)
    saved += sum(2 * x.size for x in base.values() if x.dtype == jnp.bfloat16)
    saved -= sum(x.nbytes for n, x in base.items() if n.endswith(SCALE))
    assert sizes[1] - sizes[0] == pytest.approx(saved, abs=256)


def run_from(of_three_steps, make_run, folder, **changes):
    choices = {
        "model": EncoderDecoder(small.config(adapters=DORA)),
        "initial_checkpoint": str(of_three_steps[1] / "checkpoints" / "3"),
        "trainable": TRAINED,
        "total_steps": 2,
        "checkpoint_every_steps": 1,
    }
    return make_run(folder, **{**choices, **changes})


@pytest.mark.proof
@pytest.mark.parametrize("base_dtype", ["bfloat16", "int8"])
def test_a_new_run_has_the_base_of_its_checkpoint(base_dtype, of_three_steps, make_run, tmp_path):
    run = run_from(of_three_steps, make_run, tmp_path, base_dtype=base_dtype)
    program = small.program_of(run)
    checkpoints = StoredCheckpoints(tmp_path)
    state = new_state(program, checkpoints, lambda line: None)
    abstract, got = by_name(program.state.params), by_name(state.params)
    assert {n: (x.shape, x.dtype) for n, x in got.items()} == {
        n: (x.shape, x.dtype) for n, x in abstract.items()
    }
    values = with_float_kernels(run.model, got)
    base = by_name(jax.device_get(of_three_steps[0].params))
    name = "decoder/layers/self_attention/query"
    for each, wanted in base.items():
        is_int8 = f"{each.rpartition('/')[0]}/{SCALE}" in got
        is_kernel = each.endswith("/kernel") and "logits_dense" not in each
        assert is_int8 == (base_dtype == "int8" and is_kernel)
        assert is_int8 or got[each].dtype == jnp.bfloat16
        # Half of a step of 1/127 of the largest weight of an output, or of bfloat16.
        limit = np.abs(wanted).max() / 254
        np.testing.assert_allclose(np.float32(values[each]), wanted, rtol=0, atol=1.01 * limit)
    # The model starts as its base in this dtype: magnitudes are the norms of these kernels.
    norms = np.linalg.norm(np.float64(values[f"{name}/kernel"]), axis=1)
    np.testing.assert_allclose(got[f"{name}/lora_magnitude"], norms, rtol=1e-5)
    # Nothing of the base is in what the run saves.
    left = by_name(checkpoints.saved_base.without(state).params)
    assert sorted(left) == added_names(run.model)
    averaged, *own = checkpoints.saved_base.parameters
    part = dataclasses.replace(checkpoints.saved_base, parameters=tuple(own))
    with pytest.raises(UserError, match=f"own parameters are the whole base, .* of {averaged};"):
        check_left_out(part, run.model, state.params, TRAINED)


@pytest.mark.proof
def test_a_run_with_an_int8_base_resumes_to_the_bit(of_three_steps, make_run, tmp_path):
    def run(name, **changes):
        folder = tmp_path / name
        return run_from(of_three_steps, make_run, folder, base_dtype="int8", **changes)

    whole = small.train(run("whole"))
    small.train(run("stopped", total_steps=1))
    resumed = small.train(run("stopped"))
    for name, value in by_name(whole).items():
        np.testing.assert_array_equal(by_name(resumed)[name], value, err_msg=name)
    model = EncoderDecoder(small.config(adapters=DORA))
    kept = StoredCheckpoints(tmp_path / "whole" / "checkpoints").metadata(2)["params"]
    assert sorted(by_name(kept)) == sorted(by_name(small.params(model)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_dtype": "int4"}, "train.base_dtype .*'int4'.*int8"),
        (
            {"model": EncoderDecoder(small.config())},
            "train.base_dtype is for adapters .* needs T5Config.adapters, got none",
        ),
        ({"initial_checkpoint": None}, "train.base_dtype .* needs train.initial_checkpoint, got n"),
        (
            {"restore_rules": [("fresh", "encoder/.*")]},
            "train.base_dtype needs a base that fits .* got train.restore_rules .*'fresh'",
        ),
        (
            {"trainable": (".*",)},
            r"train.base_dtype is for parameters that do not train, got train.trainable \['.\*'\]",
        ),
        (
            {"trainable": (".*/(kernel|lora)_.*",)},
            r"train.trainable must not match .*/kernel_scale, the scales of an int8 kernel, got",
        ),
    ],
)
def test_runs_without_a_base_that_stays_are_rejected(changes, message, make_run, tmp_path):
    choices = {
        "model": EncoderDecoder(small.config(adapters=DORA)),
        "initial_checkpoint": str(tmp_path / "checkpoints" / "3"),
        "trainable": TRAINED,
        "base_dtype": "int8",
    }

    def program():
        run = make_run(tmp_path, **{**choices, **changes})
        return small.program_of(run)

    with pytest.raises(UserError, match=message):
        program()
