import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.models.adapted_maps import added_names, with_adapters
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.classifier import Classes
from t5lite.models.model import check_adapters, parameters
from t5lite.models.prefix_tuning import PrefixTuning
from t5lite.models.prompt_tuning import PromptTuning, PTuning
from t5lite.parallel.rules import RULES
from tests import small
from tests.models.families import FAMILIES
from tests.models.incremental import extended, logits_by_pieces, packed, started

# float32, the same sums in another order.
TOLERANCE = 1e-5
PREFIX = PrefixTuning(length=3)
PROMPT = PromptTuning(length=2)
MODELS = {
    "t5": with_adapters(EncoderDecoder(small.config()), (PREFIX, PROMPT)),
    "t5gemma_2": with_adapters(FAMILIES["t5gemma_2"], (PREFIX,)),
    "gemma_3": with_adapters(FAMILIES["gemma_3"], (PREFIX, PROMPT)),
}


def test_a_prefix_is_as_tokens_before_the_first_of_each_example(rng):
    """Of one layer, a prefix can be made of tokens, whose positions the bias then shows."""
    config = small.config(num_encoder_layers=1, num_decoder_layers=0, num_buckets=8, max_distance=9)
    bare = EncoderOnly(config)
    params = small.params(bare)
    before = rng.integers(3, 259, (1, 3))
    batch = {k: v for k, v in packed(1, rows=1).items() if k.startswith("encoder")}
    own = by_name(params)
    x = np.float64(own["token_embedder/embedding"])[before[0]]
    x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + config.norm_epsilon)
    x = x * np.float64(own["encoder/layers/pre_attention_layer_norm/scale"][0])
    attention = dict(params["encoder"]["layers"]["attention"])
    for part in ("key", "value"):
        kernel = np.float64(own[f"encoder/layers/attention/{part}/kernel"][0])
        made = np.einsum("le,ehd->lhd", x, kernel)[None]
        attention[f"prefix_{part}"] = jnp.asarray(made, jnp.float32)
    layers = {**params["encoder"]["layers"], "attention": attention}
    adapted = {**params, "encoder": {**params["encoder"], "layers": layers}}
    got = np.asarray(small.logits(with_adapters(bare, (PREFIX,)), adapted, batch))[0]

    segments = batch["encoder_segment_ids"][0]
    for segment in (1, 2):
        mine = segments == segment
        tokens = np.pad(batch["encoder_input_tokens"][0][mine], (0, 10 - mine.sum()))
        alone = {
            "encoder_input_tokens": np.concatenate([before, tokens[None]], axis=1),
            "encoder_segment_ids": (np.arange(13)[None] < 3 + mine.sum()).astype(np.int32),
        }
        wanted = np.asarray(small.logits(bare, params, alone))[0, 3 : 3 + mine.sum()]
        np.testing.assert_allclose(got[mine], wanted, rtol=TOLERANCE, atol=TOLERANCE)


def with_room(model, batch, count):
    """A batch with so many tokens of a prompt before the first, of random ids."""
    stack = "encoder" if model.has_encoder else "decoder"
    rng = np.random.default_rng(0)
    rows = {}
    for name, array in batch.items():
        more = np.zeros((len(array), count if name.startswith(stack) else 0), array.dtype)
        if name.endswith("input_tokens"):
            more = rng.integers(3, 259, more.shape).astype(array.dtype)
        if name.endswith("segment_ids"):
            more = np.broadcast_to(array[:, :1], more.shape)
        rows[name] = np.concatenate([more, array], axis=1)
    return rows


@pytest.mark.proof
@pytest.mark.parametrize("name", ["t5", "gemma_3"])
def test_examples_of_a_row_have_a_prefix_and_a_prompt_each_as_alone_and_from_a_cache(name):
    model = MODELS[name]
    params = small.params(model)
    count = PROMPT.length if PROMPT in model.config.adapters else 0
    ones = [with_room(model, small.batch(seed, rows=2, targets=7), count) for seed in (1, 2)]
    both = {k: np.concatenate([one[k] for one in ones], axis=1) for k in ones[0]}
    for stack in ("encoder", "decoder"):
        ids = f"{stack}_segment_ids"
        both[ids] = np.concatenate([n * one[ids] for n, one in enumerate(ones, 1)], axis=1)
    together = np.asarray(small.logits(model, params, both))
    separate = [np.asarray(small.logits(model, params, one)) for one in ones]
    length = separate[0].shape[1]
    is_token = [one["decoder_segment_ids"] > 0 for one in ones]
    for part, wanted, real in zip(np.split(together, 2, axis=1), separate, is_token, strict=True):
        np.testing.assert_allclose(part[real], wanted[real], rtol=TOLERANCE, atol=TOLERANCE)
    got = logits_by_pieces(model, params, both, [1] * (2 * length))
    real = both["decoder_segment_ids"] > 0
    np.testing.assert_allclose(got[real], together[real], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.proof
@pytest.mark.parametrize("name", ["t5gemma_2", "gemma_3"])
def test_a_hypothesis_after_padding_equals_the_full_pass(name):
    """Rows of prompts of unequal lengths begin with padding, which positions do not count."""
    model = MODELS[name]
    params = small.params(model)
    count = PROMPT.length if PROMPT in model.config.adapters else 0
    batch = with_room(model, small.batch(3, rows=3, targets=7), count)
    expected = np.asarray(small.logits(model, params, batch))
    tokens = batch["decoder_input_tokens"]
    lengths = batch["decoder_segment_ids"].sum(axis=1)
    width = tokens.shape[1]
    right = {k: v for k, v in batch.items() if k.startswith("encoder")}
    for name in ("decoder_input_tokens", "decoder_segment_ids"):
        rows = zip(batch[name], lengths, strict=True)
        right[name] = np.stack([np.roll(row, width - length) for row, length in rows])
    first = {k: v[:, :-1] if k.startswith("decoder") else v for k, v in right.items()}
    variables = {"params": params}
    cache = started(model, variables, first, width)
    _, cache = extended(model, variables, first, cache)
    one_more = jax.jit(lambda *args: model.apply(variables, *args, method="extend_by_one"))
    logits, _ = one_more(
        jnp.asarray(right["decoder_input_tokens"][:, -1:]),
        jnp.asarray(right["decoder_segment_ids"] > 0)[:, None],
        jnp.asarray(width - 1, jnp.int32),
        cache,
    )
    wanted = expected[np.arange(3), lengths - 1]
    np.testing.assert_allclose(logits[:, 0], wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_parameters_of_prefixes_and_prompts_are_those_of_their_adapters():
    attention = [f"encoder/layers/attention/prefix_{part}" for part in ("key", "value")]
    names = added_names(with_adapters(EncoderOnly(small.config(num_decoder_layers=0)), (PREFIX,)))
    assert names == attention
    for network, count in (("mlp", 7), ("lstm", 5 + 6)):
        adapter = PTuning(length=2, hidden_dim=4, network=network)
        model = with_adapters(DecoderOnly(small.decoder_config()), (adapter,))
        names = added_names(model)
        assert len(names) == count
        # Sharding has one rule for each name, and rejects an array that has one twice.
        for name in names:
            axes = parameters(model)[name].names
            assert len(set(axes)) == len(axes), (name, axes)
            assert set(axes) <= RULES.keys(), (name, axes)
        assert all(name.startswith("prompt/prompt_") for name in names)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrefixTuning(length=0), "PrefixTuning.length must be a whole number >= 1, got 0"),
        (lambda: PrefixTuning(length=2, targets=()), "PrefixTuning.targets must name at least one"),
        (lambda: PromptTuning(length=-1), "PromptTuning.length must be a whole number >= 1"),
        (lambda: PTuning(length=2, hidden_dim=0), "PTuning.hidden_dim must be a whole number"),
        (lambda: PTuning(length=2, network="gru"), "PTuning.network is unknown: got 'gru'"),
        (lambda: PTuning(length=2, num_layers=3), "PTuning.num_layers must be 2, its default, w"),
    ],
)
def test_wrong_fields_are_rejected_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_prefix_of_no_attention_layer_is_rejected_with_their_names():
    adapter = PrefixTuning(length=2, targets=("decoder/.*",))
    model = with_adapters(EncoderOnly(small.config(num_decoder_layers=0)), (adapter,))
    message = "attaches to no attention layer; there are encoder/layers/attention$"
    with pytest.raises(UserError, match=message):
        check_adapters(model)


def test_a_prompt_of_a_classifier_is_rejected():
    config = small.config(num_decoder_layers=0, adapters=(PROMPT,))
    model = EncoderOnly(config, Classes(count=2, per_token=False))
    message = "is for models that predict tokens alone, got EncoderOnly with .*; use PrefixTuning"
    with pytest.raises(UserError, match=message):
        check_adapters(model)
