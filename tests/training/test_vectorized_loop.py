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
from t5lite.models.adalora import AdaLoRA
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.ia3 import IA3
from t5lite.models.lora import LoRA
from t5lite.models.prefix_tuning import PrefixTuning
from t5lite.models.prompt_tuning import PromptTuning
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.optimizers.schedules import CosineSchedule
from t5lite.parallel.mesh import Mesh
from t5lite.training.bad_steps import BadSteps
from t5lite.training.base_dtype import as_in_checkpoints
from t5lite.training.checkpoint_folders import FOLDER
from t5lite.training.good_checkpoints import read_history
from t5lite.training.one_program import check_one_program
from t5lite.training.program import train_program
from t5lite.training.rank_budget import RankBudget
from t5lite.training.slot import VectorizedTrial
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small
from tests.training.faults import NOT_A_NUMBER, MarkedLoss, mark_batches

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
    small.train_vectorized(
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
    checkpoints = StoredCheckpoints(pathlib.Path(run.model_dir) / FOLDER)
    state = train_program(run, mesh).state
    state = dataclasses.replace(state, params=as_in_checkpoints(state.params))
    return by_name(checkpoints.restore(step, state).params)


@pytest.mark.proof
@pytest.mark.parametrize(
    "mesh",
    [Mesh(data=8), Mesh(fsdp=2, tensor=2), Mesh(population=2, data=1, fsdp=2)],
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


@pytest.mark.proof
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
        check_one_program(make_run("a"), make_run("b", **changes), dropout=False)


@pytest.mark.proof
def test_a_trial_of_another_program_ends_the_sweep(make_run):
    with pytest.raises(UserError, match=r"train\.batch_size must be the same"):
        together([make_run("a"), make_run("b", batch_size=16)], 2)


@pytest.mark.proof
def test_a_trial_returns_to_its_own_good_checkpoint(make_run, monkeypatch):
    mark_batches(monkeypatch, {5: NOT_A_NUMBER, 6: NOT_A_NUMBER}, of=("lost", "lost_alone"))
    rules = BadSteps(max_in_a_row=2)
    choices = {"loss": MarkedLoss(), "bad_steps": rules, "total_steps": 7}
    runs = [make_run("lost", **choices), make_run("good", rate=3e-3, **choices)]
    assert together(runs, 2) == dict.fromkeys(("lost", "good"), "finished")
    for run in runs:
        model_dir = pathlib.Path(run.model_dir)
        _, own = alone(run, f"{model_dir.name}_alone")
        metrics, wanted = (read_metrics(pathlib.Path(r.model_dir)) for r in (run, own))
        names = ("step", "split", "bad_steps")
        assert [[m.get(n) for n in names] for m in metrics] == [
            [m.get(n) for n in names] for m in wanted
        ]
        np.testing.assert_allclose(
            [m["loss_nats_per_token"] for m in metrics],
            [m["loss_nats_per_token"] for m in wanted],
            rtol=ROUNDING,
        )
        histories = [read_history(pathlib.Path(r.model_dir) / FOLDER) for r in (run, own)]
        assert histories[0] == histories[1]
        assert len(histories[0].returns) == (model_dir.name == "lost")
        assert outcomes(model_dir)["finished"] == 1
        assert sum(outcomes(model_dir).values()) == 1


@pytest.mark.proof
def test_trials_with_adapters_over_one_base_equal_the_same_runs_alone(make_run, of_three_steps):
    adapters = (
        LoRA(rank=2, decomposed=True),
        IA3(),
        AdaLoRA(targets=(".*mlp/wi_0",), rank=3),
        PrefixTuning(length=2),
        PromptTuning(length=3),
    )
    choices = {
        "model": EncoderDecoder(small.config(adapters=adapters)),
        "rank_budget": RankBudget(target_rank=2, total_steps=6),
        "initial_checkpoint": str(of_three_steps[1] / "checkpoints" / "3"),
        "trainable": [".*/(lora|ia3|prefix|prompt)_.*"],
        "base_dtype": "int8",
    }
    runs = [make_run("a", rate=1e-2, **choices), make_run("b", rate=3e-3, seed=1, **choices)]
    assert together(runs, 2) == dict.fromkeys("ab", "finished")
    for run in runs:
        _, own = alone(run, pathlib.Path(run.model_dir).name + "_alone")
        wanted = saved_params(own, 6)
        for name, value in saved_params(run, 6).items():
            np.testing.assert_allclose(value, wanted[name], rtol=1e-3, atol=ROUNDING, err_msg=name)
        about = StoredCheckpoints(pathlib.Path(run.model_dir) / FOLDER).about(6)
        assert about["base"]["checkpoint"] == choices["initial_checkpoint"]
