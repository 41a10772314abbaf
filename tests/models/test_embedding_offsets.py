import jax
import numpy as np
import pytest

from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly, ModelApply
from t5lite.models.classifier import Classes
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from tests import small

CONFIG = small.config(tied_logits=False, separate_embeddings=True)
MODELS = [
    EncoderDecoder(CONFIG),
    DecoderOnly(small.decoder_config(tied_logits=False)),
    EncoderOnly(small.config(num_decoder_layers=0, tied_logits=False)),
    EncoderDecoderClassifier(CONFIG, Classes(count=3, per_token=True)),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_offsets_equal_other_embeddings(model, rng, seed):
    """One vector added to every token of a stack is as one added to all rows of its table."""
    params = small.params(model)
    batch = small.batch(seed)
    vector = rng.normal(size=16).astype(np.float32)
    embedded = jax.eval_shape(ModelApply(model).embedded, params, batch)
    offsets = {name: np.broadcast_to(vector, x.shape) for name, x in embedded.items()}
    zeros = jax.tree.map(np.zeros_like, offsets)
    moved = jax.tree.map(lambda x: x, params)
    tables = {"encoder_embedding_offsets": "encoder_token_embedder"}
    for name in embedded:
        owner = tables.get(name, "token_embedder")
        owner = owner if owner in params else "token_embedder"
        moved[owner]["embedding"] = params[owner]["embedding"] + vector[None]
    expected = small.logits(model, moved, batch | zeros)
    np.testing.assert_allclose(
        small.logits(model, params, batch | offsets), expected, rtol=1e-4, atol=1e-4
    )
    assert np.abs(expected - small.logits(model, params, batch | zeros)).max() > 0.01
