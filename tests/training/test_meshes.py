"""Every mesh, and every way to save memory, trains as one device does."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.adalora import AdaLoRA
from t5lite.models.architectures import EncoderDecoder, EncoderOnly
from t5lite.models.bottleneck import Bottleneck
from t5lite.models.ia3 import IA3
from t5lite.models.lora import LoRA
from t5lite.models.prefix_tuning import PrefixTuning
from t5lite.models.prompt_tuning import PTuning
from t5lite.objectives.masked_lm import MaskedLM
from t5lite.optimizers.optimizer import make_optimizer
from t5lite.parallel.mesh import Mesh
from t5lite.parallel.rules import MESH_AXES
from t5lite.parallel.sharding import batch_sharding, make_global, on_mesh
from t5lite.planning.program_text import Program
from t5lite.training.feed import Feed
from t5lite.training.program import train_program
from t5lite.training.rank_budget import RankBudget
from t5lite.training.state import initial_state
from t5lite.training.step import lower_train_step
from tests import small
from tests.models.encoders import BERT_PARTS, MODERNBERT_PARTS
from tests.models.families import T5GEMMA, T5GEMMA_2
from tests.models.low_rank import LowRank
from tests.proofs import proof

# Sums in another order, in float32: some units in the last place of each of some hundred terms.
ROUNDING = 2e-5
# The same relative to the largest of an array: small entries are differences of larger ones.
OF_LARGEST = 1e-4

DENSE = {"num_heads": 4}
EXPERTS = {**DENSE, "num_experts": 4, "experts_per_token": 2, "capacity_factor": 1.0}
ADAPTERS = (
    LoRA(rank=4, decomposed=True, initialization="pissa"),
    IA3(),
    AdaLoRA(targets=(".*attention/(key|out)",), rank=4),
    Bottleneck(targets=(".*mlp/wo",), bottleneck_dim=4),
    PrefixTuning(length=3),
    PTuning(length=2, hidden_dim=6),
)
# T5Gemma has a layer more than its pattern.
T5GEMMA_2_OF_TWO_LAYERS = {
    **T5GEMMA_2,
    "encoder_windows": ((2, 1), None),
    "decoder_windows": ((2, 0), None),
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
}
BUDGET = RankBudget(target_rank=2, total_steps=6)
# Not AdamW: it divides by the size of a gradient, and an expert, or a parameter before several
# norms, may have next to none.
SGD = make_optimizer(optax.sgd, name="sgd", learning_rate=0.1, momentum=0.9)

_beginnings: dict[str, Any] = {}
_of_one: dict[str, Any] = {}


@pytest.fixture
def trained(make_run, tmp_path):
    """From choices of a run to its program, and what 5 steps of it give."""

    def go(sizes, *, config=DENSE, kind=EncoderDecoder, devices=4, **choices):
        run = make_run(
            tmp_path,
            model=kind(small.config(**config)),
            **{"length_multiple": 8, "mesh": Mesh(**sizes), **choices},
        )
        mesh = run.mesh.make(jax.devices()[:devices])
        program = train_program(run, mesh)
        step = lower_train_step(program).compile()
        beginning = _beginnings.setdefault(repr((config, run.param_dtype)), [])
        if not beginning:
            with on_mesh(mesh):
                init = jax.jit(
                    lambda: initial_state(
                        run.model, program.hyper, program.param_axes, run.param_dtype
                    )
                )
                beginning.append(jax.device_get(init()))
        state = jax.tree.map(
            lambda x, like: jax.device_put(x, like.sharding), beginning[0], program.state
        )
        feed = Feed(run, range(run.batch_size), None, log=print)
        place = make_global(batch_sharding(mesh, run.batch_size), run.batch_size)
        metrics = []
        for _, batch in zip(range(5), feed, strict=False):
            state, sums = step(program.hyper, state, place(batch), {})
            metrics.append([float(sums["loss"] / sums["tokens"]), float(sums["gradient_norm"])])
        feed.close()
        return np.array(metrics), state

    return go


@pytest.fixture
def assert_trains_as_one(trained):
    def check(sizes, *, of_one=None, **choices):
        metrics, state = trained(sizes, **choices)
        alone = {**choices, "devices": 1, **(of_one or {})}
        if (key := repr(alone)) not in _of_one:
            expected, wanted = trained({}, **alone)
            _of_one[key] = expected, jax.device_get(wanted)
        expected, wanted = _of_one[key]
        np.testing.assert_allclose(metrics, expected, rtol=ROUNDING)

        def same(a, b):
            largest = float(np.max(np.abs(b), initial=0.0))
            np.testing.assert_allclose(a, b, atol=OF_LARGEST * largest + 1e-12)

        # The moments are sums of gradients and of their squares.
        jax.tree.map(same, jax.device_get(state), wanted)

    return check


@pytest.mark.proof
@pytest.mark.parametrize("axis", MESH_AXES)
def test_each_axis_alone_trains_as_one_device(axis, assert_trains_as_one):
    assert_trains_as_one({"data": 1, axis: 4})


# The fewest in which every two axes meet.
TRIPLES = (
    ("dcn", "data", "fsdp"),
    ("dcn", "data", "expert"),
    ("dcn", "sequence", "tensor"),
    ("data", "sequence", "tensor"),
    ("fsdp", "expert", "sequence"),
    ("fsdp", "expert", "tensor"),
)


def test_every_pair_of_axes_is_in_a_triple():
    pairs = {pair for triple in TRIPLES for pair in itertools.combinations(triple, 2)}
    assert pairs == set(itertools.combinations(MESH_AXES, 2))


@pytest.mark.proof
@pytest.mark.parametrize("triple", TRIPLES, ids="-".join)
def test_axes_in_triples_train_as_one_device(triple, assert_trains_as_one):
    assert_trains_as_one({"data": 1} | dict.fromkeys(triple, 2), devices=8)


SPLIT = {"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2}


ALL_AT_ONCE = {
    "config": {**DENSE, "scan_unroll": 2, "remat": "minimal"},
    "loss": CrossEntropy(chunks=3),
    "offload_optimizer": True,
}
NONE = {"config": DENSE, "loss": CrossEntropy(), "offload_optimizer": False}


@pytest.mark.parametrize(
    ("choices", "of_one"),
    [
        proof(ALL_AT_ONCE, NONE),
        proof({"microbatches": 4}, {"microbatches": 1}),
        proof({"config": {**DENSE, "scan_unroll": 2}}, {"config": DENSE}),
        proof({"config": {**DENSE, "remat": "attention"}}, {"config": DENSE}),
        proof({"config": {**DENSE, "remat": "minimal"}}, {"config": DENSE}),
        proof({"config": {**DENSE, "remat": "full"}}, {"config": DENSE}),
        proof({"loss": CrossEntropy(chunks=3)}, {"loss": CrossEntropy()}),
        proof({"offload_optimizer": True}, {"offload_optimizer": False}),
        proof({"packed": True}, {}),
        proof({"config": {**DENSE, "positions": "rotary", "num_kv_heads": 2}}, {}),
        proof({"config": {**DENSE, "encoder_attention": "local", "local_radius": 4}}, {}),
        proof({"config": {**DENSE, "decoder_windows": (2, None), "adapters": (LowRank(),)}}, {}),
    ],
    ids=lambda choices: "-".join(map(str, choices)),
)
def test_every_way_to_save_memory_trains_as_one_device_without_it(
    choices, of_one, assert_trains_as_one
):
    rows = {"batch_size": 16} if "microbatches" in choices else {}
    sizes = {"data": 1, "fsdp": 4, "tensor": 2} if rows else SPLIT
    assert_trains_as_one(sizes, devices=8, of_one=of_one, **choices, **rows)


@pytest.mark.proof
@pytest.mark.parametrize(
    "config",
    [T5GEMMA, T5GEMMA_2_OF_TWO_LAYERS, {**DENSE, "adapters": ADAPTERS}],
    ids=["t5gemma", "t5gemma_2", "adapters"],
)
def test_unequal_stacks_and_adapters_train_as_on_one_device(config, assert_trains_as_one):
    choices = {"rank_budget": BUDGET} if "adapters" in config else {}
    assert_trains_as_one(SPLIT, devices=8, config=config, packed=True, optimizer=SGD, **choices)


@pytest.mark.proof
@pytest.mark.parametrize(
    "config",
    [
        # Without rotations, the gradient of the biases of keys is 0 but for rounding.
        {**BERT_PARTS, "linear_bias": False},
        {**MODERNBERT_PARTS, "linear_bias": True},
    ],
    ids=["bert", "modernbert"],
)
def test_encoders_train_as_on_one_device(config, assert_trains_as_one, text_file, data_dir):
    task = small.task(text_file, data_dir)
    task = dataclasses.replace(task, objective=MaskedLM(inputs_length=24))
    choices = {"kind": EncoderOnly, "task": task, "packed": True, "optimizer": SGD}
    assert_trains_as_one(SPLIT, devices=8, config=config, **choices)


@pytest.mark.parametrize(
    ("sizes", "choices", "of_one"),
    [
        proof({"expert": 4}, {}, {}),
        proof({"expert": 2, "fsdp": 2}, {"microbatches": 2}, {"microbatches": 1}),
        proof({"expert": 2, "sequence": 2}, {"packed": True}, {}),
        proof({"expert": 2, "tensor": 2}, {"config": {**EXPERTS, "remat": "minimal"}}, {}),
    ],
    ids=str,
)
def test_experts_train_as_on_one_device(sizes, choices, of_one, assert_trains_as_one):
    choices = {"config": EXPERTS, "optimizer": SGD, **choices}
    assert_trains_as_one({"data": 1, **sizes}, of_one={"config": EXPERTS, **of_one}, **choices)


@pytest.mark.proof
def test_parameters_in_bfloat16_are_rounded_equally_on_every_mesh(trained):
    _, one = trained({}, devices=1, param_dtype="bfloat16")
    _, many = trained(SPLIT, devices=8, param_dtype="bfloat16")
    same = []

    def compare(a, b):
        assert a.dtype == "bfloat16"
        # What is rounded differs in the last places of float32, so once in a while the result does.
        same.append(np.mean(np.asarray(a) == np.asarray(b)))

    jax.tree.map(compare, jax.device_get(many.params), jax.device_get(one.params))
    assert np.mean(same) > 0.99


@pytest.mark.proof
def test_a_device_has_its_share_of_parameters_and_moments(trained):
    _, state = trained({"data": 2, "fsdp": 2, "tensor": 2}, devices=8)

    def held(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    def total(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    split = {"query", "key", "value", "out", "wi_0", "wi_1", "wo", "embedding", "logits_dense"}
    by_share = {4: 0, 2: 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        names = {getattr(key, "key", None) for key in path}
        share = 4 if names & split else 2
        by_share[share] += leaf.nbytes
        assert leaf.addressable_shards[0].data.nbytes * share == leaf.nbytes, path
    assert held(state.params) == by_share[4] // 4 + by_share[2] // 2
    moments = (state.opt_state[0].mu, state.opt_state[0].nu)
    assert held(moments) == 2 * held(state.params)
    assert total(moments) == 2 * total(state.params)


@pytest.mark.proof
def test_the_program_is_as_long_for_48_layers_as_for_2(make_run, tmp_path):
    def instructions(layers):
        config = small.config(num_encoder_layers=layers, num_decoder_layers=layers)
        run = make_run(tmp_path, model=EncoderDecoder(config), mesh=Mesh(fsdp=2, tensor=2))
        text = lower_train_step(train_program(run, run.mesh.make())).as_text()
        return len(text.splitlines())

    assert instructions(48) == instructions(2)


def program_text(make_run, tmp_path, sizes, **choices):
    run = make_run(tmp_path, **{"length_multiple": 8, "mesh": Mesh(**sizes), **choices})
    program = small.program_of(run)
    return program, Program(lower_train_step(program).compile().as_text())


@pytest.mark.proof
def test_chunked_logits_are_never_in_memory_for_all_rows(make_run, tmp_path):
    # Vocabulary 384, 8 places of a target, 4 of 8 rows on one of them.
    for chunks, is_there in ((1, True), (4, False)):
        loss = CrossEntropy(chunks=chunks)
        _, text = program_text(make_run, tmp_path, {"data": 1, "fsdp": 2}, loss=loss)
        assert (("f32", (4, 8, 384)) in text.shapes()) == is_there


@pytest.mark.skipif(
    jax.__version_info__ < (0, 11),
    reason="XLA of jax 0.10 sends the gradients of looked-up embeddings across slices, too",
)
def test_only_gradients_cross_slices(make_run, tmp_path):
    program, text = program_text(make_run, tmp_path, {"dcn": 2, "data": 1, "fsdp": 4})
    crossing = [c for c in text.collectives(program.mesh.shape) if "dcn" in c.axes]
    assert {c.kind for c in crossing} == {"all-reduce"}
    # Each gradient once: at most as many bytes as there are parameters, and a few sums.
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(program.state.params))
    assert sum(c.payload_bytes * c.times for c in crossing) < 1.05 * size
