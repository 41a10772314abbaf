"""The formula for FLOPs against the matrix products of XLA's programs, with parameters frozen."""

import functools

import jax
import jax.numpy as jnp
import pytest

from t5lite.models.adalora import AdaLoRA
from t5lite.models.architectures import EncoderDecoder, EncoderOnly
from t5lite.models.bottleneck import Bottleneck
from t5lite.models.classifier import Classes
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from t5lite.models.flops import forward_flops, train_flops
from t5lite.models.ia3 import IA3
from t5lite.models.lora import LoRA
from t5lite.models.model import parameters
from t5lite.models.prefix_tuning import PrefixTuning
from t5lite.planning.program_text import Program
from t5lite.training.state import params_and_axes
from t5lite.training.trainable import join_params, split_params, trainable_names
from tests import small
from tests.proofs import proof

# One layer, because the loop over several computes the gradient of each layer's input, of the
# first one too. Large enough that XLA keeps all products.
SIZES = {
    "embed_dim": 32,
    "num_heads": 2,
    "head_dim": 24,
    "mlp_dim": 40,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}
LENGTHS = {"encoder_input_tokens": 20, "decoder_input_tokens": 12}
ROWS = 4
UNEQUAL = {
    "encoder_embed_dim": 48,
    "encoder_num_heads": 3,
    "encoder_head_dim": 16,
    "encoder_mlp_dim": 56,
    "separate_embeddings": True,
}


@functools.cache
def program_flops(patterns, **choices):
    """Returns the FLOPs of the matrix products of a loss and its gradient."""
    model = EncoderDecoder(small.config(**SIZES, **choices))
    params, _ = params_and_axes(model)
    trained, constant = split_params(params, patterns)
    shapes = {
        name: jax.ShapeDtypeStruct(
            (ROWS, LENGTHS[f"{name.partition('_')[0]}_input_tokens"]), "int32"
        )
        for name in (
            "encoder_input_tokens",
            "encoder_segment_ids",
            "decoder_input_tokens",
            "decoder_segment_ids",
        )
    }

    def loss(trained, constant, batch):
        logits = model.apply({"params": join_params(trained, constant)}, batch)
        # Its gradient is no constant.
        return jnp.sum(jnp.square(logits))

    step = jax.jit(jax.value_and_grad(loss))
    return Program(step.lower(trained, constant, shapes).compile().as_text()).flops()


@pytest.mark.parametrize(
    "patterns",
    [
        (".*",),
        proof(("decoder/.*",)),
        proof(("encoder/.*",)),
        proof(("decoder/decoder_norm/.*",)),
        proof((".*/(query|value)/kernel",)),
        proof(("token_embedder/.*", "decoder/layers/mlp/.*")),
        proof(("encoder/relpos_bias/.*",)),
    ],
    ids=["all", "frozen_encoder", "encoder", "last_norm", "query_value", "embedding_mlp", "bias"],
)
def test_flops_are_those_of_the_program(patterns):
    model = EncoderDecoder(small.config(**SIZES))
    trained = trainable_names("", patterns, parameters(model))
    assert ROWS * train_flops(model, LENGTHS, trained) == program_flops(patterns)


@pytest.mark.proof
@pytest.mark.parametrize("patterns", [(".*",), ("decoder/.*",), ("encoder/.*",)], ids=str)
def test_flops_of_unequal_stacks_are_those_of_the_program(patterns):
    check_flops(patterns, **UNEQUAL)


@pytest.mark.proof
@pytest.mark.parametrize("patterns", [(".*",), ("encoder/.*",)], ids=str)
def test_flops_of_merged_attention_are_those_of_the_program(patterns):
    check_flops(patterns, positions="rotary", num_kv_heads=1, qk_norm=True, merged_attention=True)


@pytest.mark.parametrize(
    ("patterns", "adapters"),
    [
        (
            (".*/(lora|ia3|bottleneck|prefix)_.*",),
            (
                LoRA(rank=3),
                AdaLoRA(targets=(".*mlp/wi",), rank=2),
                IA3(targets=()),
                Bottleneck(targets=(".*attention/out",), bottleneck_dim=5),
                PrefixTuning(length=7),
            ),
        ),
        proof((".*/lora_(down|up)",), (LoRA(targets=("encoder/.*/wo", "dec.*/key"), rank=3),)),
        proof(
            (".*/ia3_scale",), (IA3(targets=("decoder/.*/key",), input_targets=("enc.*/value",)),)
        ),
    ],
    ids=["all", "lora", "ia3"],
)
def test_flops_of_adapters_are_those_of_the_program(patterns, adapters):
    check_flops(patterns, adapters=adapters)


def test_the_first_product_of_pissa_is_counted_forward():
    map_name = "encoder/layers/attention/value"
    plain, pissa = (
        forward_flops(EncoderOnly(small.config(num_decoder_layers=0, adapters=adapters)), LENGTHS)
        for adapters in ((), (LoRA(targets=(map_name,), rank=3, initialization="pissa"),))
    )
    # Two layers; two updates of rank 3 from 16 inputs to 12 outputs.
    assert pissa - plain == 2 * 2 * 2 * 3 * (16 + 12) * 20


def check_flops(patterns, **choices):
    model = EncoderDecoder(small.config(**SIZES | choices))
    trained = trainable_names("", patterns, parameters(model))
    found = program_flops(patterns, **choices)
    assert ROWS * train_flops(model, LENGTHS, trained) == found


def test_all_parameters_cost_three_times_the_forward_flops():
    model = EncoderDecoder(small.config())
    forward = forward_flops(model, LENGTHS)
    assert train_flops(model, LENGTHS) == 3 * forward
    assert train_flops(model, LENGTHS, list(parameters(model))) == 3 * forward


def test_flops_of_frozen_layers_are_those_of_the_first_trained_layer_on():
    deep = small.config(**SIZES | {"num_encoder_layers": 5})
    model = EncoderDecoder(deep)
    decoder = trainable_names("", ["decoder/.*"], parameters(model))
    shallow = EncoderDecoder(small.config(**SIZES))
    more = forward_flops(model, LENGTHS) - forward_flops(shallow, LENGTHS)
    assert train_flops(model, LENGTHS, decoder) - train_flops(shallow, LENGTHS, decoder) == more


def test_decoder_of_a_classifier_is_counted_over_the_inputs():
    config = small.config(tied_logits=True)
    classes = Classes(count=3, per_token=False, pooling="last", has_dense=True)
    model = EncoderDecoderClassifier(config, classes)
    tokens = 20
    both = {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens}
    logits = 2 * config.embed_dim * config.vocab_size * tokens
    heads = 2 * config.embed_dim * (config.embed_dim + 3) * tokens
    found = forward_flops(model, {"encoder_input_tokens": tokens})
    assert found == forward_flops(EncoderDecoder(config), both) - logits + heads
    assert train_flops(model, {"encoder_input_tokens": tokens}) == 3 * found


def test_nothing_before_the_head_of_a_frozen_encoder_is_counted_backward():
    model = EncoderOnly(small.config(num_decoder_layers=0, tied_logits=False))
    lengths = {"encoder_input_tokens": 20}
    head = 2 * model.config.embed_dim * model.config.vocab_size * 20
    found = train_flops(model, lengths, ["logits_dense/kernel"])
    assert found == forward_flops(model, lengths) + head
