"""Several runs in one program, beside the same runs alone."""

import dataclasses
import pathlib

import jax
import numpy as np
import optax
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.core.run_directory import outcomes, read_metrics
from t5lite.models.architectures import EncoderDecoder
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.optimizers.schedules import CosineSchedule
from t5lite.parallel.mesh import Mesh
from t5lite.training.checkpoints import FOLDER, Checkpoints
from t5lite.training.program import train_program
from t5lite.training.slot import VectorizedTrial
from t5lite.training.vectorized_loop import train_vectorized
from tests import small

# Sums of a batched product are added up in another order; AdamW's first steps make of gradients
# near 0 what their signs are.
ROUNDING = 2e-5


@pytest.fixture
def make_run(text_file, data_dir, tmp_path):
    def make(name, *, rate=1e-2, dropout=0.0, **changes):
        schedule = CosineSchedule(learning_rate=rate, warmup_steps=2, decay_steps=8)
        optimizer = make_optimizer(
            optax.adamw, name="AdamW", learning_rate=schedule, weight_decay=0.1
        )
        model = EncoderDecoder(small.config(dropout_rate=dropout))
        choices = {"model": model, "optimizer": optimizer, "eval_every_steps": 3, **changes}
        return small.run(text_file, data_dir, tmp_path / name, **choices)

    return make


def together(runs, size, **options):
    ended = {}
    train_vectorized(
        (
            VectorizedTrial(
                run=run, config_text=f"# {run.model_dir}\n", command=["t5lite", "train"]
            )
            for run in runs
        ),
        size,
        small.mesh(runs[0]),
        evaluate=small.evaluate_of,
        on_end=lambda run, how: ended.update({pathlib.Path(run.model_dir).name: how}),
        **options,
    )
    return ended


def alone(run, name):
    folder = str(pathlib.Path(run.model_dir).parent / name)
    run = dataclasses.replace(run, model_dir=folder, mesh=Mesh())
    return small.train(run), run


def saved_params(run, step):
    mesh = small.mesh(run)
    checkpoints = Checkpoints(pathlib.Path(run.model_dir) / FOLDER, read_only=True)
    state = checkpoints.restore(step, train_program(run, mesh).state)
    checkpoints.close()
    return by_name(state.params)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(Mesh(data=8), marks=pytest.mark.proof),
        pytest.param(Mesh(fsdp=2, tensor=2), marks=pytest.mark.proof),
        Mesh(population=2, data=1, fsdp=2),
    ],
    ids=["data", "split", "population"],
)
def test_each_trial_equals_the_same_run_alone(make_run, mesh):
    runs = [
        make_run("a", rate=1e-2, seed=0, mesh=mesh),
        make_run("b", rate=3e-3, seed=1, dropout=0.2, mesh=mesh),
        # Takes the slot of the first trial that ends.
        make_run("c", rate=1e-3, seed=0, mesh=mesh, total_steps=4),
    ]
    stacked = set()

    def look(run, step, scores):
        # The embeddings of both places.
        found = [x for x in jax.live_arrays() if x.shape == (2, 384, 16)]
        stacked.update(x.sharding.spec[0] for x in found)
        return False

    assert together(runs, 2, on_scores=look) == dict.fromkeys("abc", "finished")
    assert stacked == {"population" if mesh.population > 1 else None}
    for run in runs:
        state, own = alone(run, pathlib.Path(run.model_dir).name + "_alone")
        metrics, wanted = (read_metrics(pathlib.Path(r.model_dir)) for r in (run, own))
        assert [(m["step"], m["split"]) for m in metrics] == [
            (m["step"], m["split"]) for m in wanted
        ]
        for name in ("loss_nats_per_token", "target_tokens"):
            np.testing.assert_allclose(
                [m[name] for m in metrics], [m[name] for m in wanted], rtol=ROUNDING
            )
        params = saved_params(run, run.total_steps)
        for name, leaf in by_name(jax.device_get(state.params)).items():
            np.testing.assert_allclose(
                params[name], leaf, rtol=1e-3, atol=1e-4 * np.abs(leaf).max(), err_msg=name
            )
        assert (pathlib.Path(run.model_dir) / "result.json").exists()
        assert (pathlib.Path(run.model_dir) / "config.gin").read_text().startswith("# ")


def test_a_diverged_or_pruned_trial_does_not_affect_others(make_run):
    runs = [make_run("good"), make_run("bad", rate=1e30), make_run("slow", rate=1e-6)]
    runs += [make_run("next", rate=1e-3)]
    ended = together(
        runs, 3, on_scores=lambda run, step, scores: run.model_dir.endswith("slow") and step == 3
    )
    assert str(ended["bad"]).startswith("training diverged")
    assert {name: ended[name] for name in ("good", "slow", "next")} == {
        "good": "finished",
        "slow": "pruned",
        "next": "finished",
    }
    _, own = alone(runs[0], "good_alone")
    metrics, wanted = (read_metrics(pathlib.Path(r.model_dir)) for r in (runs[0], own))
    np.testing.assert_allclose(
        [m["loss_nats_per_token"] for m in metrics],
        [m["loss_nats_per_token"] for m in wanted],
        rtol=ROUNDING,
    )
    counts = [outcomes(pathlib.Path(run.model_dir)) for run in runs]
    assert [c["finished"] for c in counts] == [1, 0, 0, 1]
    assert [c["failed"] for c in counts] == [0, 1, 0, 0]


@pytest.mark.proof
def test_a_trial_resumes_alone_and_in_a_sweep(make_run):
    short = [make_run("a", total_steps=3), make_run("b", seed=1, total_steps=3)]
    together(short, 2)
    longer = [dataclasses.replace(run, total_steps=6) for run in short]
    small.train(longer[0])
    together(longer, 2)
    for run in longer:
        _, own = alone(run, pathlib.Path(run.model_dir).name + "_alone")
        metrics, wanted = (
            [m["loss_nats_per_token"] for m in read_metrics(pathlib.Path(r.model_dir))]
            for r in (run, own)
        )
        # Behind the last step of the short run it was evaluated once more.
        assert len(metrics) == len(wanted)
        np.testing.assert_allclose(metrics, wanted, rtol=ROUNDING)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 16}, "train.batch_size must be the same in all runs of one program"),
        ({"model": EncoderDecoder(small.config(mlp_dim=32))}, "need the same model"),
        ({"max_gradient_norm": 1.0}, "differ in numbers only"),
        ({"offload_optimizer": True}, "train.offload_optimizer must be False in a vectorized"),
    ],
)
def test_runs_of_other_programs_are_rejected(make_run, changes, message):
    with pytest.raises(UserError, match=message):
        together([make_run("a"), make_run("b", **changes)], 2)
