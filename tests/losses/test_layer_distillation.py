import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.losses.distillation import Distillation
from t5lite.losses.layer_distillation import LayerDistillation
from t5lite.losses.loss import check_teacher_maps, evaluation_loss
from t5lite.models.architectures import EncoderDecoder, EncoderOnly, ModelApply
from t5lite.models.frozen import FrozenModel, SameRows
from tests import small
from tests.models.encoders import MODERNBERT_PARTS, inputs

# Of float32 activations of a few layers.
ROUNDING = 1e-4
TEACHER = EncoderDecoder(small.config(embed_dim=20, num_decoder_layers=1))
MODEL = EncoderDecoder(small.config(num_decoder_layers=1, teacher_embed_dim=20))
PAIRS = [("encoder", 1, 2), ("decoder", 1, 1)]


@pytest.fixture(scope="module")
def batch():
    return jax.tree.map(jnp.asarray, small.batch(3))


def apply_of(model, teacher=TEACHER, rows=None):
    frozen = FrozenModel(teacher, small.params(teacher, 1), rows or SameRows(), 384)
    return ModelApply(model, None, {"teacher": frozen})


@pytest.mark.proof
def test_layers_follow_those_of_a_wider_teacher(batch):
    loss = LayerDistillation(layers=PAIRS, layer_weight=0.5)
    params = small.params(MODEL)
    plain, sums, ours, theirs = jax.jit(
        lambda p: (
            loss.distillation(apply_of(MODEL), p, batch, by_row=True),
            loss(apply_of(MODEL), p, batch, by_row=True),
            ModelApply(MODEL).recorded(p, batch)[2],
            ModelApply(TEACHER).recorded(small.params(TEACHER, 1), batch)[2],
        )
    )(params)
    wanted = np.zeros(4)
    for stack, layer, other in PAIRS:
        kernel = np.asarray(params["teacher_maps"][stack], np.float64)
        x = np.asarray(ours[stack][layer - 1], np.float64) @ kernel
        squares = ((x - np.asarray(theirs[stack][other - 1])) ** 2).mean(-1)
        mask = np.asarray(batch[f"{stack}_segment_ids"]) > 0
        wanted += (squares * mask).sum(1) / mask.sum(1) / len(PAIRS)
    wanted *= np.asarray(batch["decoder_loss_weights"]).sum(1)
    np.testing.assert_allclose(sums["layer_squares"], wanted, rtol=ROUNDING)
    np.testing.assert_allclose(sums["loss"] - plain["loss"], 0.5 * wanted, rtol=1e-3)
    assert evaluation_loss(loss) == Distillation().cross_entropy


@pytest.mark.proof
def test_outputs_of_patterned_layers_are_in_their_order():
    config = small.config(**MODERNBERT_PARTS)
    model = EncoderOnly(config)
    params, batch = small.params(model), inputs(0, [9, 4], types=False)
    outputs = jax.jit(lambda p: ModelApply(model).recorded(p, batch)[2])(params)["encoder"]
    assert len(outputs) == 5
    for count in (1, 2, 4):
        # A first layer without the norm before it is apart: these parameters have one row fewer.
        short = EncoderOnly(dataclasses.replace(config, num_encoder_layers=count))

        def first(path, x, count=count):
            rows = count - (5 - len(x)) if "layers" in jax.tree_util.keystr(path) else None
            return x[:rows]

        some = jax.tree_util.tree_map_with_path(first, params)
        layers = some["encoder"]["layers"].items()
        some["encoder"]["layers"] = {
            name: part for name, part in layers if len(jax.tree.leaves(part)[0])
        }
        found = jax.jit(lambda p, m=short: ModelApply(m).recorded(p, batch)[2])(some)["encoder"]
        np.testing.assert_allclose(found, outputs[:count], rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: LayerDistillation(layers=[("encoder", 0, 1)]), "layers must be triples"),
        (lambda b: LayerDistillation(layers=[]), "layers must be at least one triple"),
        (lambda b: check_teacher_maps(Distillation(), 20), "with train.loss = @Distillation.., wh"),
        (
            lambda b: of(LayerDistillation(layers=[("encoder", 3, 1)]), MODEL, b),
            "must be layers of the model, whose encoder has 2, got 3",
        ),
        (
            lambda b: of(LayerDistillation(layers=[("decoder", 1, 2)]), MODEL, b),
            "must be layers of the teacher, whose decoder has 1, got 2",
        ),
        (
            lambda b: of(
                LayerDistillation(layers=PAIRS),
                EncoderDecoder(small.config(num_decoder_layers=1)),
                b,
            ),
            "need the width of the teacher's encoder, 20, got 16; bind T5Config.teacher_embed_dim",
        ),
    ],
)
def test_layers_that_do_not_fit_are_rejected(call, message, batch):
    with pytest.raises(UserError, match=message):
        call(batch)


def of(loss, model, batch):
    return jax.eval_shape(lambda p: loss(apply_of(model), p, batch), small.params(model))
