import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.inference.decoding import Decoding
from t5lite.inference.predict import Prompt, make_predict
from t5lite.models.adalora import AdaLoRA
from t5lite.models.adapted_maps import with_adapters
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.bottleneck import Bottleneck
from t5lite.models.ia3 import IA3
from t5lite.models.lora import LoRA
from t5lite.models.prefix_tuning import PrefixTuning
from t5lite.models.row_adapters import NO_ADAPTER, make_bind_rows, stacked_params
from t5lite.parallel.mesh import Mesh
from tests import small

# float32, the same sums in another order.
TOLERANCE = 2e-5
ADAPTERS = (
    LoRA(rank=2, decomposed=True),
    AdaLoRA(targets=(".*mlp/wi_0", "decoder/.*attention/out"), rank=2),
    IA3(),
    Bottleneck(bottleneck_dim=3),
)
# Of another class, another rank and partly on other maps.
OTHERS = (LoRA(targets=(".*attention/(query|key)",), rank=3, alpha=4.0),)
ROWS = (1, NO_ADAPTER, 0, 2)


def drawn(models):
    """Parameters of a base, and of each model over it, whose adapters all change much."""
    base = by_name(small.params(without_adapters(models[0])))
    sets = []
    for seed, model in enumerate(models):
        rng = np.random.default_rng(seed)

        def draw(path, leaf, rng=rng):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            moved = leaf + 0.3 * rng.normal(size=leaf.shape)
            return base.get(name, jnp.asarray(moved, jnp.float32))

        sets.append(jax.tree_util.tree_map_with_path(draw, small.params(model)))
    return flax.traverse_util.unflatten_dict(base, sep="/"), sets


def without_adapters(model):
    return with_adapters(model, ())


@pytest.mark.proof
def test_each_row_has_the_logits_of_its_adapter_alone():
    config = small.config(adapters=ADAPTERS, num_decoder_layers=3, decoder_windows=(2, None))
    model = EncoderDecoder(config)
    models = [model, with_adapters(model, OTHERS), model]
    base, sets = drawn(models)
    batch = small.batch(3)
    bind_rows = make_bind_rows(models)

    @jax.jit
    def logits(params, numbers, batch):
        bound, own = bind_rows(params, numbers)
        return bound.apply({"params": own}, batch)

    got = logits(stacked_params(sets, models), np.int32(ROWS), batch)
    alone = {n: small.logits(models[n], params, batch) for n, params in enumerate(sets)}
    alone[NO_ADAPTER] = small.logits(without_adapters(model), base, batch)
    for row, number in enumerate(ROWS):
        wanted = np.asarray(alone[number][row])
        limit = TOLERANCE * np.abs(wanted).max()
        np.testing.assert_allclose(got[row], wanted, rtol=TOLERANCE, atol=limit)
        others = [alone[other][row] for other in alone if other != number]
        assert all(np.abs(other - wanted).max() > 1e-2 for other in others)


@pytest.mark.proof
def test_a_batch_generates_what_each_adapter_generates_alone(rng):
    model = EncoderDecoder(small.config(adapters=(LoRA(rank=2), IA3())))
    models = [model, with_adapters(model, OTHERS)]
    base, sets = drawn(models)
    inputs = [rng.integers(3, 250, 7).astype(np.int32) for _ in ROWS]
    mesh = Mesh().make(jax.devices()[:2])
    decoding = Decoding(num_beams=2)
    sizes = {"stop_ids": (1,), "inputs_length": 8, "targets_length": 6, "batch_size": 4}
    of_rows = make_predict(model, mesh, decoding, **sizes, bind_rows=make_bind_rows(models))
    numbers = (1, NO_ADAPTER, 0, 1)
    prompts = [Prompt(inputs=i, adapter=n) for i, n in zip(inputs, numbers, strict=True)]
    got = of_rows(stacked_params(sets, models), prompts)
    each = {n: (models[n], params) for n, params in enumerate(sets)}
    each[NO_ADAPTER] = without_adapters(model), base
    alone = {
        n: make_predict(one, mesh, decoding, **sizes)(params, prompts)
        for n, (one, params) in each.items()
    }
    for row, number in enumerate(numbers):
        for mine, wanted in zip(got[row], alone[number][row], strict=True):
            np.testing.assert_array_equal(mine.tokens, wanted.tokens)
            np.testing.assert_allclose(mine.score, wanted.score, rtol=1e-4)


def test_models_whose_rows_cannot_choose_are_rejected():
    config = small.decoder_config(
        adapters=(LoRA(targets=(".*mlp/wi_0",)),), num_experts=2, capacity_factor=2.0
    )
    with pytest.raises(UserError, match="--adapter takes no adapters of experts.*/mlp/wi_0; merge"):
        make_bind_rows([DecoderOnly(config)])
    prefix = small.config(adapters=(LoRA(), PrefixTuning(length=2)))
    with pytest.raises(UserError, match="takes adapters of linear maps alone, got PrefixTuning"):
        make_bind_rows([EncoderDecoder(prefix)])
    with pytest.raises(UserError, match="--adapter needs checkpoints with adapters of linear maps"):
        make_bind_rows([EncoderDecoder(small.config())])
