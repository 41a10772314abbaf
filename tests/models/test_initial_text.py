import jax.numpy as jnp
import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.data.text.vocabularies import ByteVocabulary
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.initial_text import values_from_texts
from t5lite.models.prompt_tuning import PromptTuning, PTuning
from tests import small

ENCODE = ByteVocabulary().encode


@pytest.mark.parametrize(
    ("text", "used"), [("abc", "abcab"), ("abcdefgh", "abcde"), ("abcde", "abcde")]
)
def test_vectors_start_as_the_embedded_tokens_of_the_text(text, used, rng):
    table = rng.normal(size=(384, 16)).astype(np.float32)
    config = small.config(adapters=(PromptTuning(length=5, initial_text=text),))
    params = {"token_embedder/embedding": jnp.asarray(table)}
    got = values_from_texts(EncoderDecoder(config), params, ENCODE)
    # Bytes follow the three special ids.
    wanted = table[[3 + ord(letter) for letter in used]]
    assert list(got) == ["prompt/prompt_embedding"]
    np.testing.assert_array_equal(got["prompt/prompt_embedding"], wanted)


def test_vectors_have_the_scale_and_the_table_of_the_stack_that_reads_them(rng):
    adapters = (PromptTuning(length=2, initial_text="ab"), PTuning(length=1))
    tables = {
        f"{name}token_embedder/embedding": jnp.asarray(rng.normal(size=(384, 16)), jnp.float32)
        for name in ("", "encoder_")
    }
    fields = {"adapters": adapters, "scale_embeddings": True, "dtype": "bfloat16"}
    models = {
        "encoder_": EncoderDecoder(small.config(**fields, separate_embeddings=True)),
        "": DecoderOnly(small.decoder_config(**fields)),
    }
    for name, model in models.items():
        got = values_from_texts(model, tables, ENCODE)["prompt/prompt_embedding"]
        table = np.asarray(tables[f"{name}token_embedder/embedding"])
        wanted = 4.0 * table[[3 + ord("a"), 3 + ord("b")]]
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_a_text_without_tokens_is_rejected():
    with pytest.raises(UserError, match="PromptTuning.initial_text must be a text, or None, got"):
        PromptTuning(length=2, initial_text="")
    model = EncoderDecoder(small.config(adapters=(PromptTuning(length=2, initial_text="a"),)))
    params = {name: jnp.asarray(x) for name, x in by_name(small.params(model)).items()}
    with pytest.raises(UserError, match="initial_text must have at least one token, got 'a'"):
        values_from_texts(model, params, lambda text: np.zeros(0, np.int32))
