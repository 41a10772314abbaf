"""Prompts that start as the embedded tokens of a text."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from t5lite.core.errors import UserError
from t5lite.core.fields import field_name
from t5lite.models.embedding import Embedding
from t5lite.models.model import Model
from t5lite.models.token_adapters import TextAdapter, input_adapters


def text_adapters(adapters: Sequence[Any]) -> list[TextAdapter]:
    """Returns the adapters that start from a text."""
    return [
        adapter
        for adapter in input_adapters(adapters)
        if isinstance(adapter, TextAdapter) and adapter.initial_text is not None
    ]


def values_from_texts(
    model: Model,
    params: Mapping[str, Float[Array, "..."]],
    encode: Callable[[str], Sequence[int] | np.ndarray],
) -> dict[str, Float[Array, "..."]]:
    """Returns the first values of the parameters that adapters compute from their text, by name.

    The tokens are repeated, or the last ones left out, until they are as many as the vectors.

    Args:
        params: of the model by name; only the embedding of the tokens is read.
        encode: from a text to its token ids.

    Raises:
        UserError: for a text without a token.

    Source: huggingface/peft@v0.21.2:src/peft/tuners/prompt_tuning/model.py, PromptEmbedding.
    Differs: there is no end of sequence after the text.
    """
    config = model.config.encoder_config() if model.has_encoder else model.config
    is_own = model.has_encoder and model.config.separate_embeddings
    table = "encoder_token_embedder/" if is_own else "token_embedder/"
    embedder = Embedding(dataclasses.replace(config, dtype="float32"))
    values: dict[str, Any] = {}
    for adapter in text_adapters(model.config.adapters):
        ids = np.asarray(encode(adapter.initial_text or ""), np.int32)
        if not ids.size:
            raise UserError(
                f"{field_name(adapter, 'initial_text')} must have at least one token, got "
                f"{adapter.initial_text!r}"
            )
        tokens = jnp.asarray(np.resize(ids, (1, adapter.prompt_length)))
        own = {n.removeprefix(table): x for n, x in params.items() if n.startswith(table)}
        vectors: Any = embedder.apply({"params": own}, tokens)
        values |= {f"prompt/{n}": x for n, x in adapter.from_embedded(vectors[0]).items()}
    return values
