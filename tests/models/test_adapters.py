import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.description import check_same, describe, from_description
from t5lite.models.ia3 import IA3
from t5lite.models.lora import LoRA
from t5lite.models.model import check_adapters, parameters
from t5lite.parallel.rules import RULES
from tests import small
from tests.models.incremental import logits_by_pieces, packed
from tests.models.low_rank import LowRank, Rescaled, Thawed
from tests.proofs import proof, proofs_but

# float32, the same sums in another order.
TOLERANCE = 2e-5
ADAPTERS = (LowRank(), Rescaled())
DORA = LoRA(rank=2, decomposed=True, initialization="pissa")

MODELS = {
    "t5": EncoderDecoder(small.config(adapters=ADAPTERS)),
    "patterned": EncoderDecoder(
        small.config(adapters=ADAPTERS, num_decoder_layers=3, decoder_windows=(2, None))
    ),
    "experts": DecoderOnly(
        small.decoder_config(
            adapters=(LowRank(patterns=("*/mlp/wi_0", "*logits_dense")),),
            num_experts=2,
            capacity_factor=2.0,
        )
    ),
}


def base_of(model):
    return model.clone(config=dataclasses.replace(model.config, adapters=()))


def is_added(name):
    return bool(re.search("lora_|ia3", name))


def trained(params):
    """The parameters with adapters that change something."""
    rng = np.random.default_rng(0)

    def moved(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf + 0.3 * rng.normal(size=leaf.shape) * is_added(name)

    return jax.tree.map(jnp.float32, jax.tree_util.tree_map_with_path(moved, params))


def without(params):
    return {
        name: without(part) if isinstance(part, dict) else part
        for name, part in params.items()
        if not is_added(name)
    }


@pytest.mark.parametrize("name", proofs_but(("t5",), MODELS))
def test_new_adapters_change_no_logits_and_trained_ones_do(name):
    model, batch = MODELS[name], small.batch(1)
    params = small.params(model)
    base = small.logits(base_of(model), without(params), batch)
    np.testing.assert_array_equal(small.logits(model, params, batch), base)
    changed = small.logits(model, trained(params), batch)
    assert np.abs(changed - base).max() > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_adapters_are_stacked_and_have_logical_axes(name):
    added = {k: box for k, box in parameters(MODELS[name]).items() if is_added(k)}
    assert added
    for box in added.values():
        assert len(box.names) == box.value.ndim
        assert set(box.names) <= set(RULES)
    if name != "experts":
        box = added["decoder/layers/self_attention/query/lora_up"]
        assert box.names == ("layers", "adapter", "heads", "kv")
        num_layers = MODELS[name].config.num_decoder_layers
        assert box.value.shape == (num_layers, 2, 2, 6)


@pytest.mark.parametrize("adapters", [ADAPTERS, proof((DORA, IA3()))], ids=["own", "dora_and_ia3"])
def test_cached_decoding_applies_adapters(adapters):
    config = base_of(MODELS["patterned"]).config
    model = EncoderDecoder(dataclasses.replace(config, adapters=adapters))
    batch = packed(2)
    params = trained(small.params(model))
    expected = np.asarray(small.logits(model, params, batch))
    real = batch["decoder_segment_ids"] > 0
    got = logits_by_pieces(model, params, batch, [9, 1, 1, 1])
    np.testing.assert_allclose(got[real], expected[real], rtol=TOLERANCE, atol=TOLERANCE)


def test_an_adapter_sees_the_same_names_in_training_and_in_decoding():
    seen = {}

    @dataclasses.dataclass(frozen=True)
    class Spy:
        phase: str

        def attaches_to(self, name):
            seen.setdefault(self.phase, set()).add(name)
            return False

        def wrap(self, site, apply):
            return apply

    params = small.params(base_of(MODELS["patterned"]))
    config = base_of(MODELS["patterned"]).config
    batch = jax.tree.map(jnp.asarray, small.batch(1))
    whole = EncoderDecoder(dataclasses.replace(config, adapters=(Spy("training"),)))
    jax.eval_shape(lambda: whole.apply({"params": params}, batch))
    pieces = EncoderDecoder(dataclasses.replace(config, adapters=(Spy("decoding"),)))
    logits_by_pieces(pieces, params, small.batch(1), [6])
    assert seen["training"] == seen["decoding"]
    assert "decoder/layers/encoder_decoder_attention/out" in seen["training"]
    kernels = {n.removesuffix("/kernel") for n in by_name(params) if n.endswith("/kernel")}
    assert seen["training"] == kernels


def test_a_checkpoint_describes_its_adapters():
    model = MODELS["patterned"]
    described = json.loads(json.dumps(describe(model)))
    assert from_description(described) == model
    other = model.clone(config=dataclasses.replace(model.config, adapters=(LowRank(scale=1.0),)))
    with pytest.raises(UserError, match=r"was trained with T5Config.adapters .*'scale': 2.0"):
        check_same({"model": described}, other, "it")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at_all:LowRank", "'nowhere.at_all:LowRank' cannot be imported: No module"),
        ("os:abort", "the checkpoint names 'os:abort' as an adapter, which is none"),
    ],
)
def test_a_checkpoint_with_an_unknown_adapter_is_rejected_by_name(name, message):
    described = describe(EncoderDecoder(small.config()))
    described["config"]["adapters"] = [{"adapter": name, "fields": {}}]
    with pytest.raises(UserError, match=message):
        from_description(described)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("low_rank", "T5Config.adapters has no 'low_rank'; .* as \"module:function\""),
        (LowRank, "T5Config.adapters must be adapters, with the methods attaches_to and wrap"),
        (3, "T5Config.adapters must be adapters"),
        (Thawed(), "T5Config.adapters must be frozen dataclasses, got Thawed"),
    ],
)
def test_what_is_no_adapter_is_rejected(adapter, message):
    with pytest.raises(UserError, match=message):
        small.config(adapters=(adapter,))


def test_an_adapter_that_attaches_to_no_map_is_rejected():
    model = EncoderDecoder(small.config(adapters=(LowRank(patterns=("*/attn/query",)),)))
    message = r"LowRank\(patterns=\('\*/attn/query',\).* attaches to no map; there are decoder/lay"
    with pytest.raises(UserError, match=message):
        check_adapters(model)


def test_an_adapter_may_be_named_from_outside():
    assert small.config(adapters=("tests.models.low_rank:LowRank",)).adapters == (LowRank(),)
