"""Names in a batch that several packages rely on; `data.batching.features` lists all of them."""

from collections.abc import Mapping
from typing import Any

# Arrays by name, of NumPy or JAX; inside `jax.eval_shape` only their shapes.
Batch = Mapping[str, Any]


def writing_side(batch: Batch) -> str:
    """Returns the stack that predicts the targets of a batch: "decoder", or "encoder" alone."""
    return "decoder" if "decoder_target_tokens" in batch else "encoder"


def segments_of(batch: Batch) -> Any:
    """Returns the number of the example of each target of a batch, [b, l]; 0 is padding."""
    return batch[f"{writing_side(batch)}_segment_ids"]


def targets_of(batch: Batch) -> tuple[Any, Any]:
    """Returns the targets of a batch and their weights, both [b, l]."""
    side = writing_side(batch)
    return batch[f"{side}_target_tokens"], batch[f"{side}_loss_weights"]
