"""What `t5lite convert` is told besides where from and where to."""

import dataclasses
from collections.abc import Sequence

from t5lite.core.errors import check_choice
from t5lite.data.text.vocabularies import Vocabulary
from t5lite.models.config import DTYPES
from t5lite.parallel.mesh import Mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """Choices of a conversion.

    Args:
        mesh: that a t5lite checkpoint is written for; any other can read it too.
        vocabulary: in the place of the checkpoint's own, or where it brings none.
        optimizer_state: whether T5X's Adafactor state is taken along.
        dtype: of what is written for Hugging Face, "float32" or "bfloat16".
        mlp_activations, encoder_attention: of a T5X checkpoint, as in T5Config, where they are not
            what its arrays suggest.
    """

    mesh: Mesh = Mesh()
    vocabulary: Vocabulary | None = None
    optimizer_state: bool = False
    dtype: str = "float32"
    mlp_activations: Sequence[str] | None = None
    encoder_attention: str | None = None

    def __post_init__(self) -> None:
        check_choice("convert.dtype", self.dtype, DTYPES)
