import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5lite.cli.inspect import parameter_rows
from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.core.run_directory import read_metrics
from t5lite.optimizers.adafactor import adafactor
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.parallel.mesh import Mesh
from t5lite.training.step import lower_train_step
from t5lite.training.stored_checkpoints import StoredCheckpoints
from t5lite.training.trainable import join_params, split_params
from tests import small

FROZEN = {"trainable": ["decoder/.*"]}


@pytest.fixture(scope="module")
def frozen(text_file, data_dir, tmp_path_factory):
    """The last state, and the folder, of a run that trains the decoder only."""
    folder = tmp_path_factory.mktemp("frozen")
    run = small.run(text_file, data_dir, folder, total_steps=4, checkpoint_every_steps=2, **FROZEN)
    return small.train(run), folder


def initial_params(run):
    program = small.program_of(run)
    return by_name(jax.device_get(program.init(program.hyper).params))


def test_constants_keep_their_values_and_have_no_optimizer_state(frozen, make_run, tmp_path):
    state, _ = frozen
    before, after = initial_params(make_run(tmp_path, **FROZEN)), by_name(state.params)
    assert before.keys() == after.keys()
    for name, value in before.items():
        changed = bool(np.any(np.asarray(after[name]) != value))
        assert changed == name.startswith("decoder/"), name
    moments = by_name(state.opt_state[0].mu)
    assert moments.keys() == {name for name in before if name.startswith("decoder/")}


@pytest.mark.proof
def test_gradients_equal_those_of_a_run_that_trains_everything(make_run, tmp_path):
    # SGD moves each parameter by its gradient, whatever the others do.
    sgd = make_optimizer(optax.sgd, name="sgd", learning_rate=0.1)
    choices = {"optimizer": sgd, "total_steps": 1}
    whole = small.train(make_run(tmp_path / "whole", **choices))
    some = small.train(make_run(tmp_path / "some", **choices, **FROZEN))
    for name, value in by_name(some.params["decoder"]).items():
        np.testing.assert_allclose(
            value, by_name(whole.params["decoder"])[name], rtol=1e-6, atol=1e-7, err_msg=name
        )
    norms = [read_metrics(tmp_path / n)[1]["gradient_norm"] for n in ("whole", "some")]
    assert norms[1] < norms[0]


def test_a_run_with_constants_resumes_bitwise(frozen, make_run, tmp_path):
    state, _ = frozen
    for steps in (2, 4):
        resumed = small.train(make_run(tmp_path, total_steps=steps, **FROZEN))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(resumed))


def test_other_patterns_than_the_checkpoints_are_rejected(frozen, make_run, tmp_path):
    _, folder = frozen
    for patterns in ([".*"], ["encoder/.*"]):
        with pytest.raises(UserError, match="train.trainable must select the parameters that "):
            small.train(make_run(folder, total_steps=5, trainable=patterns))
    source = str(folder / "checkpoints" / "4")
    choices = {"initial_checkpoint": source, "total_steps": 6}
    with pytest.raises(UserError, match="train.trainable must select"):
        small.train(make_run(tmp_path / "a", **choices, restore_optimizer=True))
    # Parameters alone may come from a run that trained others.
    params = by_name(small.train(make_run(tmp_path / "b", **choices)).params)
    assert params.keys() == by_name(frozen[0].params).keys()


def test_a_checkpoint_of_a_run_that_trains_everything_does_not_name_it(of_three_steps):
    checkpoints = StoredCheckpoints(of_three_steps[1] / "checkpoints")
    assert "trainable" not in checkpoints.about(3)


@pytest.mark.proof
@pytest.mark.parametrize(
    "choices",
    [
        {"microbatches": 2, "max_gradient_norm": 0.1, "param_dtype": "bfloat16"},
        {"offload_optimizer": True},
        {"mesh": Mesh(fsdp=2, tensor=2)},
    ],
    ids=["microbatches_clipped_bfloat16", "offloaded", "sharded"],
)
def test_constants_with_all_that_changes_the_step(choices, make_run, tmp_path):
    factored = make_optimizer(adafactor, name="A", learning_rate=0.05, min_dim_size_to_factor=4)
    run = make_run(tmp_path, total_steps=2, optimizer=factored, **FROZEN, **choices)
    before, after = initial_params(run), by_name(jax.device_get(small.train(run).params))
    for name, value in before.items():
        assert bool(np.any(after[name] != value)) == name.startswith("decoder/"), name


@pytest.mark.proof
def test_everything_trainable_is_the_same_program(make_run, tmp_path):
    programs = [
        small.program_of(run)
        for run in (make_run(tmp_path), make_run(tmp_path, trainable=["encoder/.*", "[^e].*"]))
    ]
    texts = [lower_train_step(program).as_text() for program in programs]
    assert texts[0] == texts[1]


def test_splitting_and_joining_give_the_same_tree():
    params = {"a": {"x": jnp.zeros(2), "y": jnp.ones(3)}, "b": jnp.ones(())}
    joined = join_params(*split_params(params, ["a/x", "b"]))
    assert jax.tree.structure(joined) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], "train.trainable must name at least one pattern, got none"),
        (["("], r"train.trainable must be regular expressions, got '\('"),
        ([3], "train.trainable must be regular expressions, got 3"),
    ],
)
def test_patterns_that_are_none_are_rejected(patterns, message, make_run, tmp_path):
    with pytest.raises(UserError, match=message):
        make_run(tmp_path, trainable=patterns)


def test_a_pattern_that_matches_nothing_is_rejected_before_compilation(make_run, tmp_path):
    run = make_run(tmp_path, trainable=["decoder/.*", "encodr/.*"])
    with pytest.raises(UserError, match="train.trainable: 'encodr/.*' matches no parameter"):
        small.program_of(run)
    with pytest.raises(UserError, match="matches no parameter"):
        parameter_rows(run.model, None, run.trainable)


def test_inspect_shows_what_trains(make_run, tmp_path):
    run = make_run(tmp_path, **FROZEN)
    rows = parameter_rows(run.model, None, run.trainable)
    assert {row["name"] for row in rows if row["trained"]} == {
        row["name"] for row in rows if row["name"].startswith("decoder/")
    }
