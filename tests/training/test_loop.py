import dataclasses
import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import optax
import pytest
from tensorboardX.record_writer import RecordWriter

from t5lite.core.errors import UserError
from t5lite.core.run_directory import read_metrics
from t5lite.models.architectures import EncoderDecoder
from t5lite.objectives.span_corruption import SpanCorruption
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.parallel.mesh import Mesh
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.proofs import proof


def losses(run, split="train"):
    lines = read_metrics(pathlib.Path(run.model_dir))
    return {m["step"]: m["loss_nats_per_token"] for m in lines if m["split"] == split}


def assert_same(some, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(some), jax.device_get(other))


@pytest.fixture
def trained(of_three_steps, tmp_path):
    """Puts a run of three steps into `tmp_path`, and returns its state."""
    state, folder = of_three_steps
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return state


@pytest.mark.parametrize(
    "choices",
    [
        {},
        proof({"causal": True}),
        proof({"param_dtype": "bfloat16", "offload_optimizer": True, "mesh": Mesh(fsdp=2)}),
    ],
    ids=["span_corruption", "causal", "bfloat16_and_offloaded"],
)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(choices, make_run, tmp_path):
    whole = make_run(tmp_path / "whole", **choices)
    state = small.train(whole)
    parts = tmp_path / "parts"
    for steps in (2, 6):
        resumed_state = small.train(make_run(parts, **choices, total_steps=steps))
    assert_same(state, resumed_state)
    resumed = losses(make_run(parts, **choices))
    assert resumed == losses(whole)
    assert sorted(resumed) == [1, 2, 3, 4, 5, 6]


def test_training_lowers_the_loss_and_records_all_metrics(make_run, tmp_path):
    run = make_run(tmp_path, total_steps=30, log_every_steps=10, eval_every_steps=10)
    small.train(run)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert {"command", "host", "versions", "devices"} <= environment.keys()
    assert (tmp_path / "config.gin").read_text() == "# all that was in force\n"
    scores = losses(run, "validation")
    assert sorted(scores) == [0, 10, 20, 30]
    assert scores[30] < 0.7 * scores[0]
    line = next(m for m in read_metrics(tmp_path) if m["split"] == "train")
    assert {
        "learning_rate",
        "gradient_norm",
        "accuracy_fraction",
        "tokens_per_second",
        "data_wait_seconds",
        "step_seconds",
        "compile_seconds",
        "model_flops_per_second",
    } <= line.keys()
    assert line["learning_rate"] == pytest.approx(1e-2)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"validation/loss_nats_per_token" in events.read_bytes()
    assert b"# all that was in force" in events.read_bytes()


def test_a_completed_run_is_not_changed(trained, make_run, tmp_path, capsys):
    before = (tmp_path / "metrics.jsonl").read_text()
    assert_same(trained, small.train(make_run(tmp_path, total_steps=2)))
    assert "nothing to train: train.total_steps is 2" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_records_of_repeated_steps_are_dropped(trained, make_run, tmp_path):
    run = make_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "split": "train", "loss_nats_per_token": 99}\n{"step": 5, "spl')
    small.train(run)
    assert sorted(losses(run)) == [1, 2, 3, 4, 5, 6]
    assert losses(run)[4] != 99


def test_the_latest_and_the_multiples_are_kept(make_run, tmp_path):
    small.train(
        make_run(tmp_path, checkpoint_every_steps=1, keep_checkpoints=2, keep_every_steps=3)
    )
    checkpoints = StoredCheckpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == [3, 5, 6]


def test_a_checkpoint_is_restored_on_any_mesh(trained, make_run, tmp_path):
    after = small.train(make_run(tmp_path, total_steps=3, mesh=Mesh(fsdp=2, tensor=2)))
    assert_same(trained, after)


def test_a_new_run_starts_from_the_parameters_of_another(trained, make_run, tmp_path, capsys):
    source = str(tmp_path / "checkpoints" / "3")
    start = make_run(tmp_path / "second", total_steps=0, initial_checkpoint=source)
    second = small.train(start, shared=False)
    assert_same(trained.params, second.params)
    assert int(second.step) == 0
    out = capsys.readouterr().out
    assert "starting from the parameters of" in out
    # Nothing moves while XLA works, which may take minutes.
    assert "compiling the train step\nvalidation at step 0" in out


def test_an_unused_initial_checkpoint_is_logged(trained, make_run, tmp_path, capsys):
    small.train(make_run(tmp_path, initial_checkpoint="elsewhere/checkpoints/9"))
    out = capsys.readouterr().out
    assert "train.initial_checkpoint elsewhere/checkpoints/9 is not used" in out
    assert "already holds step 3" in out


def test_a_checkpoint_of_another_shape_is_rejected_with_both_shapes(trained, make_run, tmp_path):
    other = make_run(tmp_path, model=EncoderDecoder(small.config(vocab_size=400)))
    with pytest.raises(
        UserError, match=r"logits_dense/kernel must have shape \(16, 400\), got shape \(16, 384\)"
    ):
        small.train(other)


@pytest.mark.parametrize(
    "change", [{"mlp_dim": 32}, {"mlp_activations": ("relu", "linear")}, {"positions": "rotary"}]
)
def test_a_run_of_another_model_is_not_resumed(change, trained, make_run, tmp_path):
    other = make_run(tmp_path, model=EncoderDecoder(small.config(**change)))
    name = next(iter(change))
    with pytest.raises(UserError, match=rf"{tmp_path} was trained with T5Config.{name} .*, got "):
        small.train(other)


@pytest.mark.proof
def test_parameters_of_another_model_are_logged(trained, make_run, tmp_path, capsys):
    model = EncoderDecoder(small.config(mlp_activations=("relu", "linear")))
    source = str(tmp_path / "checkpoints" / "3")
    choices = {"initial_checkpoint": source, "total_steps": 0, "model": model}
    small.train(make_run(tmp_path / "second", **choices))
    out = " ".join(capsys.readouterr().out.split())
    assert "train.initial_checkpoint is of another model: " in out
    assert "was trained with T5Config.mlp_activations" in out


def test_a_run_resumes_only_with_the_data_it_was_trained_on(trained, make_run, tmp_path):
    before = (tmp_path / "config.gin").read_text()
    (tmp_path / "config.gin").write_text(before + "# mine\n")
    longer = dataclasses.replace(
        make_run(tmp_path).task, objective=SpanCorruption(inputs_length=32)
    )
    for changes, message in (
        ({"batch_size": 16}, "was trained with batch_size 8, got 16"),
        ({"seed": 5}, "was trained with seed 0, got 5"),
        ({"data_seed": 0, "packed": True}, "was trained with packed False, got True"),
        ({"causal": True}, "was trained with architecture 'EncoderDecoder', got 'DecoderOnly'"),
        ({"task": longer}, "was trained with layout EncoderDecoderLayout"),
    ):
        with pytest.raises(UserError, match=message):
            small.train(make_run(tmp_path, **changes))
    assert (tmp_path / "config.gin").read_text() == before + "# mine\n"


def test_an_initial_state_of_the_last_step_is_rejected(trained, make_run, tmp_path):
    source = str(tmp_path / "checkpoints" / "3")
    choices = {"initial_checkpoint": source, "restore_optimizer": True, "total_steps": 3}
    with pytest.raises(UserError, match="is of step 3 already: train.total_steps must be over it"):
        small.train(make_run(tmp_path / "second", **choices))
    assert not (tmp_path / "second" / "result.json").exists()


def test_an_evaluation_split_named_train_is_rejected(make_run, tmp_path):
    with pytest.raises(UserError, match=r"name it 'train\[:100%\]'"):
        small.train(make_run(tmp_path, eval_split="train"))


def test_a_view_that_cannot_be_written_is_dropped(make_run, tmp_path, monkeypatch, caplog):
    def full(writer):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "flush", full)
    small.train(make_run(tmp_path, total_steps=3))
    assert sorted(losses(make_run(tmp_path))) == [1, 2, 3]
    warnings = [m for m in caplog.messages if "TensorBoard failed and writes nothing more: " in m]
    assert len(warnings) == 1


def test_a_missing_initial_checkpoint_is_rejected(make_run, tmp_path):
    with pytest.raises(UserError, match="checkpoint 'nowhere/3' not found"):
        small.train(make_run(tmp_path, initial_checkpoint="nowhere/3"))


@pytest.mark.proof
def test_a_run_that_diverges_stops_before_it_saves(make_run, tmp_path):
    sgd = make_optimizer(optax.sgd, name="optax.sgd", learning_rate=1e30)
    with pytest.raises(
        UserError,
        match="training diverged: every step is bad at step 3; returned 2 times to step 0; lower",
    ):
        small.train(make_run(tmp_path, optimizer=sgd, total_steps=3))
    assert StoredCheckpoints(tmp_path / "checkpoints").steps() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 8, "microbatches": 3}, "must be divisible by train.microbatches"),
        ({"total_steps": -1}, "train.total_steps must be at least 0"),
        ({"log_every_steps": 0}, "train.log_every_steps must be at least 1"),
        # Sizes that no memory has, before anything is allocated for them.
        ({"batch_size": 10**10}, "train.batch_size must be at least 1 and at most 2,147,483,647"),
        ({"batch_size": 2**21}, "train.batch_size must be at most 1,048,576, got 2097152"),
        ({"data_workers": 10**9}, "train.data_workers must be at most 1,048,576"),
        ({"total_steps": 2**31}, "train.total_steps must be at least 0 and at most 2,147,483,647"),
        ({"causal": True, "model": EncoderDecoder(small.config())}, "cannot train on Causal"),
        (
            {"model": EncoderDecoder(small.config(vocab_size=300))},
            r"must be at least the vocabulary's 384 ids \(125 sentinels included\), got 300",
        ),
    ],
)
def test_conflicting_choices_are_rejected(changes, message, make_run, tmp_path):
    with pytest.raises(UserError, match=message):
        make_run(tmp_path, **changes)


def test_a_run_compiles_its_step_once(make_run, tmp_path, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        run = make_run(tmp_path, total_steps=20, checkpoint_every_steps=5, eval_every_steps=5)
        small.train(run, shared=False)
    finished = [m for m in caplog.messages if m.startswith("Finished XLA compilation of jit(")]
    steps = [m for m in finished if "jit(train_step)" in m]
    assert len(steps) == 1, finished
    assert len([m for m in finished if "jit(eval_step)" in m]) == 1, finished
