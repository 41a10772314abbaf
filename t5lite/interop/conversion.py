"""The choices of `t5lite convert` besides its input and output."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from t5lite.core.fields import check_field_choice, check_fields
from t5lite.data.text.vocabularies import Vocabulary
from t5lite.models.config_fields import DTYPES
from t5lite.parallel.mesh import Mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """Choices of a conversion.

    Args:
        mesh: the devices that a t5lite checkpoint is laid out for; any other mesh can read it.
        vocabulary: replaces the checkpoint's own, or supplies one if it has none.
        optimizer_state: whether T5X's Adafactor state is converted too.
        allow_nonfinite: whether parameters may be NaN or infinite.
        dtype: of parameters written for Hugging Face, "float32" or "bfloat16".
        max_input_tokens: `model_max_length` of the tokenizer written for Hugging Face.
        max_target_tokens: tokens after which `generate` stops, written to generation_config.json.
        mlp_activations, encoder_attention: of a T5X checkpoint, as in `T5Config`, if they differ
            from what its arrays suggest.

    Raises:
        UserError: for an unknown dtype or a number of tokens under 1.
    """

    gin_name: ClassVar[str] = "convert"

    mesh: Mesh = Mesh()
    vocabulary: Vocabulary | None = None
    optimizer_state: bool = False
    allow_nonfinite: bool = False
    dtype: str = "float32"
    max_input_tokens: int = 512
    max_target_tokens: int = 512
    mlp_activations: Sequence[str] | None = None
    encoder_attention: str | None = None

    def __post_init__(self) -> None:
        check_field_choice(self, "dtype", DTYPES)
        check_fields(
            self,
            ("max_input_tokens", "max_target_tokens"),
            "a whole number >= 1",
            lambda n: n == int(n) and n >= 1,
        )
