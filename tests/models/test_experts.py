import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import mean_metrics
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, ModelApply
from t5lite.models.experts import Experts, route
from t5lite.models.flops import train_flops
from tests import small
from tests.proofs import proof

EXPERTS = {"num_experts": 4, "capacity_factor": 4.0}


def one_hot_scores(choices, sharp=50.0):
    """Scores whose softmax is almost 1 for these experts."""
    return jnp.asarray(sharp * np.eye(4)[np.asarray(choices)], jnp.float32)


def routed(scores, capacity, choices=1, is_token=None):
    is_token = jnp.ones(scores.shape[:2], bool) if is_token is None else jnp.asarray(is_token)
    return route(scores, is_token, choices=choices, capacity=capacity)


def test_tokens_take_the_slots_of_their_expert_in_order_and_the_rest_are_dropped():
    weights, statistics = routed(one_hot_scores([[2, 0, 2, 2]]), 2)
    expected = np.zeros((1, 4, 4, 2))
    expected[0, 0, 2, 0] = expected[0, 1, 0, 0] = expected[0, 2, 2, 1] = 1
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert statistics["dropped"][0] == 0.25


def test_padding_takes_no_slot():
    weights, statistics = routed(one_hot_scores([[1, 1, 1]]), 1, is_token=[[False, True, True]])
    np.testing.assert_allclose(weights[0, :, 1, 0], [0, 1, 0], atol=1e-6)
    assert statistics["dropped"][0] == 0.5


def test_a_second_choice_follows_the_first_of_its_token_and_shares_the_weight():
    scores = jnp.log(jnp.array([[[0.6, 0.3, 0.05, 0.05], [0.2, 0.7, 0.05, 0.05]]]))
    weights, _ = routed(scores, 2, choices=2)
    np.testing.assert_allclose(weights[0, 0, 0], [2 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(weights[0, 0, 1], [1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(weights[0, 1, 1], [0, 7 / 9], atol=1e-6)
    np.testing.assert_allclose(weights[0, 1, 0], [0, 2 / 9], atol=1e-6)


def test_load_balance_is_1_if_even_and_the_number_of_experts_at_worst():
    even, worst = routed(one_hot_scores([[0, 1, 2, 3]]), 4), routed(one_hot_scores([[1] * 4]), 4)
    assert float(even[1]["load_balance"][0]) == pytest.approx(1.0, abs=1e-5)
    assert float(worst[1]["load_balance"][0]) == pytest.approx(4.0, abs=1e-5)


def test_router_z_is_the_mean_square_of_the_log_sum_exp_over_tokens():
    scores = jax.random.normal(jax.random.key(0), (1, 3, 4))
    _, statistics = routed(scores, 4, is_token=[[True, True, False]])
    expected = np.mean(np.log(np.exp(np.asarray(scores[0, :2])).sum(-1)) ** 2)
    assert float(statistics["router_z"][0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("choices", [proof(1), 2])
def test_experts_equal_a_float64_loop_over_tokens(choices):
    config = small.config(**EXPERTS, experts_per_token=choices)
    x = jax.random.normal(jax.random.key(1), (2, 5, config.embed_dim))
    is_token = jnp.ones((2, 5), bool)
    layer = Experts(config, full_name="mlp")
    params = layer.init(jax.random.key(2), x, is_token, dropout_rate=None)["params"]
    params = jax.tree.map(lambda box: box.value, params, is_leaf=lambda b: hasattr(b, "value"))
    made = layer.apply({"params": params}, x, is_token, dropout_rate=None)

    wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    for b, t in np.ndindex(2, 5):
        token = np.asarray(x[b, t], np.float64)
        scores = token @ wide["router"]["kernel"]
        probabilities = np.exp(scores) / np.exp(scores).sum()
        best = np.argsort(-probabilities)[:choices]
        gates = probabilities[best] / (probabilities[best].sum() if choices > 1 else 1.0)
        expected = 0.0
        for gate, e in zip(gates, best, strict=True):
            gelu = np.asarray(jax.nn.gelu(token @ wide["wi_0"]["kernel"][e]), np.float64)
            hidden = gelu * (token @ wide["wi_1"]["kernel"][e])
            expected = expected + gate * (hidden @ wide["wo"]["kernel"][e])
        # Float32 against float64, of numbers of order 1.
        np.testing.assert_allclose(made[b, t], expected, atol=3e-5)


@pytest.mark.parametrize("architecture", [EncoderDecoder, DecoderOnly])
def test_the_loss_contains_the_router_statistics_of_all_layers(architecture):
    is_both = architecture is EncoderDecoder
    model = architecture((small.config if is_both else small.decoder_config)(**EXPERTS))
    batch = jax.tree.map(jnp.asarray, small.batch(0))
    loss = CrossEntropy(z_loss=0.0, load_balance=0.5, router_z=0.25, chunks=2)
    sums = jax.jit(lambda p: loss(ModelApply(model), p, batch))(small.params(model))
    statistics = mean_metrics(loss, [jax.device_get(sums)])
    layers = 4 if is_both else 2
    assert layers <= statistics["load_balance_loss"] <= 4 * layers
    assert statistics["dropped_tokens_fraction"] == 0.0
    expected = statistics["cross_entropy_nats_per_token"]
    expected += 0.5 * statistics["load_balance_loss"] + 0.25 * statistics["router_z_loss"]
    assert statistics["loss_nats_per_token"] == pytest.approx(expected, rel=1e-5)


def test_routing_of_a_row_does_not_depend_on_other_rows():
    model = EncoderDecoder(small.config(num_experts=4, capacity_factor=0.5))
    batch, params = small.batch(0), small.params(model)
    whole = small.logits(model, params, batch)
    alone = small.logits(model, params, {name: x[1:2] for name, x in batch.items()})
    np.testing.assert_allclose(whole[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("choices", [1, 2])
def test_decoder_output_ignores_future_tokens_with_experts(choices):
    config = small.config(num_experts=4, experts_per_token=choices, capacity_factor=0.5)
    model, batch = EncoderDecoder(config), small.batch(0)
    changed = {**batch, "decoder_input_tokens": batch["decoder_input_tokens"].copy()}
    changed["decoder_input_tokens"][:, 3:] += 7
    params = small.params(model)
    before, after = (small.logits(model, params, b) for b in (batch, changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before[:, 3:] - after[:, 3:]).max() > 1e-3


def test_flops_count_only_the_experts_of_a_token():
    lengths = {"encoder_input_tokens": 10, "decoder_input_tokens": 6}
    config = small.config()
    dense, one, two = (
        train_flops(EncoderDecoder(c), lengths)
        for c in (
            config,
            small.config(num_experts=4),
            small.config(num_experts=4, experts_per_token=2),
        )
    )
    router = 3 * 2 * config.embed_dim * 4 * (2 * 10 + 2 * 6)
    assert one == dense + router
    assert two - one == 3 * 2 * 3 * config.embed_dim * config.mlp_dim * (2 * 10 + 2 * 6)


def test_more_than_two_experts_per_token_are_rejected():
    with pytest.raises(UserError, match="experts_per_token must be 1 or 2, .* got 3"):
        small.config(num_experts=4, experts_per_token=3)


@pytest.mark.proof
@pytest.mark.parametrize("chunks", [1, 3])
def test_sums_of_rows_add_up_to_those_of_the_batch(chunks):
    model = EncoderDecoder(small.config(**EXPERTS))
    loss, params = CrossEntropy(chunks=chunks), small.params(model)
    batch = jax.tree.map(jnp.asarray, small.batch(1))
    whole = jax.jit(lambda p: loss(ModelApply(model), p, batch))(params)
    rows = jax.jit(lambda p: loss(ModelApply(model), p, batch, by_row=True))(params)
    alone = {name: x[:1] for name, x in batch.items()}
    first = jax.jit(lambda p: loss(ModelApply(model), p, alone))(params)
    assert rows.keys() == whole.keys()
    for name, values in rows.items():
        assert values.shape == (4,)
        np.testing.assert_allclose(values.sum(), whole[name], rtol=1e-5, atol=1e-6)
        # The sums of a row do not depend on the others.
        np.testing.assert_allclose(values[0], first[name], rtol=1e-5, atol=1e-6)
