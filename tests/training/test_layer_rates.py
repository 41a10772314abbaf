"""Factors of updates by layer, and layers that train later, against NumPy's float64."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import optax
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.models.architectures import EncoderOnly
from t5lite.models.classifier import Classes
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.training.layer_rates import LayerRates
from t5lite.training.one_program import check_one_program
from t5lite.training.state import params_and_axes
from t5lite.training.step import compile_once
from tests import small

MOMENTUM = make_optimizer(optax.sgd, name="sgd", learning_rate=0.5, momentum=0.9)
ENCODER = ("encoder_input_tokens", "encoder_segment_ids")
DECAY = 0.3
# Of float32 parameters, to which small updates are added.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


def factor_of(name, rows, layers=2):
    """The factor of each row of a parameter, by the names of this model."""
    if "/layers/" in name:
        return np.array([DECAY ** (rows - 1 - row) for row in range(rows)])
    is_before = re.search(r"embedder|relpos_bias", name)
    return np.float64(DECAY**layers if is_before else 1.0)


@pytest.fixture(scope="module")
def take_steps(text_file, data_dir, tmp_path_factory):
    """Takes steps on one batch, all in one program: the numbers of the rates are its inputs."""
    rates = LayerRates(decay=1.0, top_layers=1, unfreeze_every_steps=1)
    folder = tmp_path_factory.mktemp("rates")
    run = small.run(text_file, data_dir, folder, optimizer=MOMENTUM, layer_rates=rates)
    program = small.program_of(run)
    compiled = compile_once(program, lambda line: None)().step
    batch = {name: small.batch(0, rows=8, inputs=24)[name] for name in ENCODER}
    batch |= {name: x for name, x in small.batch(0, rows=8).items() if name not in ENCODER}
    sharded = {name: jax.device_put(x, program.batch[name].sharding) for name, x in batch.items()}

    def take(rates, count):
        hyper = program.of(dataclasses.replace(run, layer_rates=rates)).hyper
        states = [program.init(hyper)]
        found = [jax.device_get(states[0])]
        for _ in range(count):
            states.append(compiled(hyper, states.pop(), sharded, {})[0])
            found.append(jax.device_get(states[-1]))
        return found

    return take


@pytest.mark.proof
def test_updates_are_multiplied_by_the_factor_of_their_layer(take_steps):
    everything = {"top_layers": 99, "unfreeze_every_steps": 1}
    before, plain = (by_name(s.params) for s in take_steps(LayerRates(decay=1.0, **everything), 1))
    rates = by_name(take_steps(LayerRates(decay=DECAY, **everything), 1)[1].params)
    for name, start in before.items():
        factor = factor_of(name, len(start))
        factor = factor.reshape(-1, *(1,) * (start.ndim - 1)) if factor.ndim else factor
        expected = start.astype(np.float64) + factor * (plain[name].astype(np.float64) - start)
        np.testing.assert_allclose(rates[name], expected, err_msg=name, **TOLERANCE)
        assert np.any(plain[name] != start), name


@pytest.mark.proof
def test_layers_that_are_frozen_keep_their_bits_until_they_train(take_steps):
    rates = LayerRates(decay=1.0, top_layers=1, unfreeze_every_steps=2)
    states = take_steps(rates, 5)
    for number, (before, after) in enumerate(itertools.pairwise(states)):
        for name, old in by_name(before.params).items():
            new = by_name(after.params)[name]
            if "/layers/" in name:
                moved = [np.any(a != b) for a, b in zip(old, new, strict=True)]
                assert moved == [number >= 2, True], (number, name)
            else:
                is_before = re.search(r"embedder|relpos_bias", name)
                assert np.any(old != new) == (not is_before or number >= 4), (number, name)
    # The momentum of frozen layers follows their gradients all the same.
    assert all(np.any(trace) for trace in jax.tree.leaves(states[1].opt_state))


def test_a_parameter_that_the_first_layers_do_not_have_belongs_to_the_last():
    axes = {"encoder": {"layers": {"a": ("layers", "embed"), "b": ("layers", "embed")}}}
    updates = {"encoder": {"layers": {"a": np.ones((3, 1)), "b": np.ones((2, 1))}}}
    scaled = LayerRates(decay=0.5).scaled(0, updates, axes)["encoder"]["layers"]
    assert scaled["a"][:, 0].tolist() == [0.25, 0.5, 1.0]
    assert scaled["b"][:, 0].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("model", ["encoder_only", "apart", "experts"])
def test_every_parameter_of_other_models_has_a_depth(model):
    changes = {
        "encoder_only": {},
        "apart": {"embedding_norm": True, "num_token_types": 2, "positions": "learned"},
        "experts": {"num_experts": 2},
    }[model]
    if model == "apart":
        changes["max_positions"] = 8
    config = small.config(num_decoder_layers=0, **changes)
    shapes, axes = params_and_axes(EncoderOnly(config, Classes(count=3, per_token=False)))
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    for name, scaled in by_name(LayerRates(decay=DECAY).scaled(0, ones, axes)).items():
        rows = scaled.shape[0]
        expected = factor_of(name, rows)
        if "embedding_norm" in name:
            expected = np.float64(DECAY**2)
        first = np.asarray(scaled).reshape(rows, -1)[:, 0]
        np.testing.assert_allclose(first, np.broadcast_to(expected, rows), rtol=1e-6, err_msg=name)


def test_the_numbers_are_inputs_of_the_program(make_run, tmp_path):
    runs = [make_run(tmp_path, layer_rates=LayerRates(decay=d, top_layers=1)) for d in (0.5, 1.0)]
    check_one_program(*runs, dropout=False)
    with pytest.raises(UserError, match="differ in numbers only"):
        check_one_program(runs[0], make_run(tmp_path), dropout=False)


def test_a_selection_without_layers_is_rejected(make_run, tmp_path):
    run = make_run(tmp_path, trainable=["token_embedder/.*"], layer_rates=LayerRates(decay=0.5))
    with pytest.raises(UserError, match="train.layer_rates needs layers among the parameters"):
        small.program_of(run)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"decay": 1.5}, r"LayerRates.decay must be in \[0, 1\], got 1.5"),
        ({"top_layers": 0}, "LayerRates.top_layers must be a whole number from 1, got 0"),
        ({"unfreeze_every_steps": 5}, "unfreeze_every_steps needs LayerRates.top_layers"),
    ],
)
def test_numbers_out_of_range_are_rejected(choices, message):
    with pytest.raises(UserError, match=message):
        LayerRates(**choices)
