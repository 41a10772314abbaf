import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.models.architectures import EncoderOnly
from t5lite.models.flops import forward_flops, train_flops
from t5lite.models.model import parameters
from t5lite.planning.program_text import Program
from tests import small
from tests.models.encoders import BERT_PARTS, ENCODERS, inputs
from tests.proofs import proofs_but

# float32, the same sums in another order.
TOLERANCE = 2e-5


def with_config(model, **changes):
    return EncoderOnly(dataclasses.replace(model.config, **changes))


@pytest.mark.parametrize("name", proofs_but(("bert",), ENCODERS))
def test_packed_examples_equal_separate_ones(name):
    model = ENCODERS[name]
    params = small.params(model)
    packed = inputs(1, [7, 9, 4], types=name == "bert")
    borders = [(0, 7), (7, 16), (16, 20)]
    separate = [
        small.logits(
            model,
            params,
            {
                feature: np.minimum(row, 1) if "segment" in feature else row
                for feature, row in ((f, np.asarray(r)[:, a:b]) for f, r in packed.items())
            },
        )
        for a, b in borders
    ]
    np.testing.assert_allclose(
        small.logits(model, params, packed),
        np.concatenate(separate, axis=1),
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


@pytest.mark.proof
@pytest.mark.parametrize(
    "changes",
    [{"remat": "full", "scan_unroll": 2}, {"remat": "minimal"}],
)
def test_a_first_layer_of_its_own_has_the_same_gradient_recomputed(changes):
    model = ENCODERS["modernbert"]
    params = small.params(model)
    batch = inputs(2, [9], types=False)

    def gradient(model):
        loss = lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, batch)))  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        gradient(model),
        gradient(with_config(model, **changes)),
    )


def test_all_layers_but_the_first_normalise_the_input_of_their_attention():
    boxes = parameters(ENCODERS["modernbert"])
    layers = "encoder/layers"
    norm = boxes[f"{layers}/pre_attention_layer_norm/scale"]
    other = boxes[f"{layers}/pre_mlp_layer_norm/scale"]
    assert (norm.value.shape, other.value.shape) == ((4, 16), (5, 16))
    assert norm.names == other.names == ("layers", "embed")
    # One layer is the first one.
    alone = parameters(with_config(ENCODERS["modernbert"], num_encoder_layers=1))
    assert not any("pre_attention" in name for name in alone)


def test_token_types_are_added_and_are_0_unless_the_batch_has_them():
    model = ENCODERS["bert"]
    params = small.params(model)
    batch = inputs(3, [6], types=False)
    plain = small.logits(model, params, batch)
    zeros = jnp.zeros_like(batch["encoder_segment_ids"])
    # Another program adds the same numbers.
    typed = small.logits(model, params, {**batch, "encoder_token_types": zeros})
    np.testing.assert_allclose(typed, plain, rtol=1e-6, atol=1e-6)
    ones = small.logits(model, params, {**batch, "encoder_token_types": zeros + 1})
    assert np.abs(ones - plain).max() > 1e-2
    unknown = small.logits(model, params, {**batch, "encoder_token_types": zeros + 2})
    assert np.isnan(unknown).all()


def test_rows_with_more_tokens_than_positions_are_rejected():
    model = ENCODERS["bert"]
    batch = inputs(4, [25], types=False)
    message = r"T5Config.max_positions must be at least the tokens of a row \(25\), got 24"
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.apply, {"params": small.params(model)}, batch)


def test_token_types_that_a_model_does_not_have_are_rejected():
    model = ENCODERS["modernbert"]
    batch = inputs(5, [4], types=True)
    with pytest.raises(UserError, match=r"num_token_types must be at least 1 for a batch with tok"):
        jax.eval_shape(model.apply, {"params": small.params(model)}, batch)


def test_flops_with_a_transformation_of_logits_are_those_of_the_program():
    # Large enough that XLA keeps all products; one layer, as in `test_flops`.
    sizes = {"embed_dim": 32, "head_dim": 24, "mlp_dim": 40, "num_encoder_layers": 1}
    model = EncoderOnly(small.config(**sizes, **BERT_PARTS))
    batch = inputs(6, [20], types=False)

    def loss(params, batch):
        return jnp.sum(jnp.square(model.apply({"params": params}, batch)))

    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), small.params(model))
    lengths = {"encoder_input_tokens": 20}
    step = jax.jit(jax.value_and_grad(loss)).lower(params, batch).compile()
    assert Program(step.as_text()).flops() == train_flops(model, lengths)
    assert train_flops(model, lengths) == 3 * forward_flops(model, lengths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_positions": None}, "max_positions must be a whole number >= 1 with .*'learned'"),
        ({"positions": "rotary"}, "max_positions must be None with T5Config.positions 'rotary'"),
        (
            {"num_decoder_layers": 1},
            "positions must be other than 'learned' for a model with a decoder",
        ),
        ({"num_experts": 2}, "linear_bias must be False for a model with experts, got True"),
        ({"num_token_types": -1}, "num_token_types must be a whole number >= 0, got -1"),
    ],
)
def test_parts_of_encoders_that_exclude_each_other_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        small.config(**{**BERT_PARTS, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits_transform": True}, "logits_transform must be False for a model with a decoder"),
        ({"logits_bias": True}, "logits_bias must be False for a model with a decoder, got True"),
        (
            {"num_encoder_layers": 0, "embedding_norm": True},
            "embedding_norm must be False for a model without an encoder, got True",
        ),
        (
            {"num_encoder_layers": 0, "num_token_types": 2},
            "num_token_types must be 0 for a model without an encoder, got 2",
        ),
    ],
)
def test_parts_of_encoders_are_rejected_in_other_models(changes, message):
    with pytest.raises(UserError, match=message):
        small.config(**changes)
