"""Files that hold an output layer although it is tied to the embedding."""

from collections.abc import Mapping

from t5lite.core.errors import UserError
from t5lite.interop.foreign import StoredArray, equal_stored


def without_tied_head(
    tensors: Mapping[str, StoredArray], head: str, embedding: str, owner: str
) -> dict[str, StoredArray]:
    """Returns the tensors of a model with tied logits without `head`.

    Raises:
        UserError: if it differs from the embedding.
    """
    kept = dict(tensors)
    stored = kept.pop(head, None)
    if stored is not None and embedding in kept and not equal_stored(stored, kept[embedding]):
        raise UserError(
            f"{owner}: {head} must equal {embedding}, as tie_word_embeddings is true; set it to "
            "false in config.json if the two were trained apart"
        )
    return kept
