import dataclasses

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.models.architectures import EncoderDecoder, EncoderOnly
from t5lite.objectives.masked_lm import MaskedLM
from t5lite.parallel.mesh import Mesh
from t5lite.training.partial_restore import check_rules, plan_restore
from t5lite.training.restore import new_state
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests import small

SOURCE = {"encoder/layers/a": (2, 8), "encoder/b": (4,), "head": (8, 3)}


def plan(rules, wanted):
    check_rules(rules)
    return {n: str(o) for n, o in plan_restore(rules, SOURCE, wanted, "C").items()}


def test_without_rules_every_parameter_comes_from_its_own_name():
    assert plan([], SOURCE) == {name: name for name in SOURCE}


def test_rules_map_skip_initialize_and_grow():
    rules = [
        ("map", "tower/(.*)", r"encoder/\1"),
        ("fresh", "head|new"),
        ("grow", "tower/b"),
        ("layers", "tower/layers/a", [1, 0, 1]),
    ]
    wanted = {"tower/layers/a": (3, 8), "tower/b": (6,), "head": (8, 5), "new": (1,)}
    assert plan(rules, wanted) == {
        "tower/layers/a": "encoder/layers/a, layers 1, 0, 1",
        "tower/b": "encoder/b, the rest initialized",
        "head": "initialized",
        "new": "initialized",
    }
    rules = [("skip", "encoder/.*")]
    assert plan(rules, {"head": (8, 3)}) == {"head": "head"}


@pytest.mark.parametrize(
    ("rules", "wanted", "message"),
    [
        ([("fresh", "nothing")], SOURCE, r"\('fresh', 'nothing'\) matches nothing; known: "),
        ([("skip", "head")], {**SOURCE, "head": (8, 3)}, "matches head, which the model uses"),
        # The first of two rules that match counts, so the second is of no use.
        (
            [("fresh", ".*"), ("fresh", "head")],
            SOURCE,
            "matches head, for which an earlier rule applies",
        ),
        ([], {"head": (8, 3)}, r"C contains encoder/b, which .*; add \('skip', 'encoder/b'\)"),
        ([], {**SOURCE, "new": (1,)}, r"C does not contain new, the source of new; add \('fresh'"),
        ([], {**SOURCE, "head": (8, 5)}, r"head must have shape \(8, 5\), got \(8, 3\)"),
        ([("grow", "head")], {**SOURCE, "head": (4, 3)}, "cannot grow from head"),
        ([("grow", "head")], {**SOURCE, "head": (8,)}, "cannot grow from head"),
        (
            [("layers", "encoder/layers/a", [0, 2])],
            SOURCE,
            "one of its layers for each of 2",
        ),
        (
            [("layers", "encoder/layers/a", [0])],
            SOURCE,
            r"must name one of its layers for each of 2, got \[0\]",
        ),
        ([("layers", "encoder/b", [0] * 4)], SOURCE, "encoder/b, which has no stacked layers"),
        ([("map", "head", r"\1")], SOURCE, "and a name made of its groups: invalid group"),
        ([("frehs", "a")], SOURCE, "did you mean 'fresh'"),
        ([("map", "a")], SOURCE, "'map' takes a pattern"),
        ([("layers", "a", "0")], SOURCE, "'layers' takes a pattern"),
        ([("layers", "a", [-1])], SOURCE, "'layers' takes a pattern"),
        ([("fresh", "(")], SOURCE, "must be a regular expression"),
        (["fresh"], SOURCE, "must be tuples such as"),
    ],
)
def test_wrong_rules_are_rejected(rules, wanted, message):
    with pytest.raises(UserError, match=message):
        plan(rules, wanted)


def test_a_name_is_built_from_the_whole_match():
    rules = [("map", "a|ab", "encoder/b"), ("skip", "head|encoder/layers/a")]
    assert plan(rules, {"ab": (4,)}) == {"ab": "encoder/b"}


@pytest.fixture
def trained(of_three_steps):
    """The state of a run of three steps, and its checkpoint."""
    state, folder = of_three_steps
    return state, str(folder / "checkpoints" / "3")


@pytest.mark.proof
def test_a_deeper_model_with_a_larger_vocabulary_and_another_head(
    trained, make_run, tmp_path, capsys
):
    first = by_name(trained[0].params)
    wider = EncoderDecoder(small.config(vocab_size=400, num_encoder_layers=4))
    rules = [
        ("grow", "token_embedder/embedding"),
        ("fresh", "decoder/logits_dense/kernel"),
        ("layers", "encoder/layers/.*", [0, 1, 0, 1]),
    ]
    choices = {
        "model": wider,
        "initial_checkpoint": trained[1],
        "restore_rules": rules,
        "total_steps": 0,
        "mesh": Mesh(data=1, fsdp=2),
    }
    second = by_name(small.train(make_run(tmp_path, **choices)).params)
    embedding = np.asarray(second["token_embedder/embedding"])
    np.testing.assert_array_equal(embedding[:384], first["token_embedder/embedding"])
    # New rows are normal with a standard deviation of 1; 256 of them.
    assert 0.8 < embedding[384:].std() < 1.2
    for name, array in second.items():
        if name.startswith("encoder/layers/"):
            np.testing.assert_array_equal(array, np.asarray(first[name])[[0, 1, 0, 1]])
        elif name not in ("token_embedder/embedding", "decoder/logits_dense/kernel"):
            np.testing.assert_array_equal(array, first[name])
    out = capsys.readouterr().out
    assert "decoder/logits_dense/kernel" in out
    assert "initialized" in out
    assert out.count(", layers 0, 1, 0, 1") == sum(n.startswith("encoder/layers/") for n in second)


@pytest.mark.proof
def test_an_encoder_is_taken_out_of_an_encoder_decoder(trained, make_run, tmp_path):
    first = by_name(trained[0].params)
    run = make_run(tmp_path)
    encoder = EncoderOnly(small.config(num_decoder_layers=0, tied_logits=True))
    choices = {
        "model": encoder,
        "task": dataclasses.replace(run.task, objective=MaskedLM(inputs_length=24)),
        "initial_checkpoint": trained[1],
        "restore_rules": [("skip", "decoder/.*")],
        "total_steps": 0,
    }
    second = by_name(small.train(make_run(tmp_path, **choices)).params)
    assert second.keys() == {name for name in first if not name.startswith("decoder/")}
    for name, array in second.items():
        np.testing.assert_array_equal(array, first[name])


@pytest.mark.proof
def test_restore_optimizer_continues_step_and_optimizer_state(trained, make_run, tmp_path):
    first, source = trained
    choices = {"initial_checkpoint": source, "restore_optimizer": True}
    run = make_run(tmp_path / "b", total_steps=5, **choices)
    second = new_state(small.program_of(run), StoredCheckpoints(tmp_path), print)
    assert int(second.step) == 3
    for ours, theirs in zip(
        by_name(second.opt_state).values(), by_name(first.opt_state).values(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert int(small.train(run).step) == 5


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"restore_optimizer": True}, "train.restore_optimizer needs train.initial_checkpoint"),
        ({"restore_rules": [("fresh", "a")]}, "train.restore_rules needs train.initial_checkpoint"),
        (
            {
                "restore_rules": [("fresh", "a")],
                "restore_optimizer": True,
                "initial_checkpoint": "x",
            },
            "needs the model of the checkpoint",
        ),
    ],
)
def test_choices_without_effect_are_rejected(choices, message, make_run, tmp_path):
    with pytest.raises(UserError, match=message):
        make_run(tmp_path, **choices)
