"""The choice of a teacher: a trained model that does not train in the run."""

import dataclasses

from t5lite.core.errors import UserError
from t5lite.core.fields import check_field_choice, check_fields, field_error, field_name
from t5lite.models.config_fields import DTYPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A checkpoint whose predictions a loss such as `Distillation` compares the model with.

    The checkpoint says what model it is. Its vocabulary must be that of the run, and its model of
    the same kind as the run's; or decoder-only beside an encoder-decoder, when it reads each
    example in one row: the inputs, and then the targets.

    Args:
        checkpoint: a MODEL_DIR for its latest, MODEL_DIR:best, or a `checkpoints/STEP` directory.
        dtype: of its activations; None for that of the run's model.
        param_dtype: of its parameters in memory.
        start_token: before the inputs of a decoder-only teacher that was trained with one; None if
            it reads the inputs from their first token.
        predicts_eos: whether the teacher was trained to end each target with an end of sequence; if
            not, ends count with their cross-entropy only. None: it was, unless it is a decoder-only
            teacher of an encoder-decoder, which has learned running text.

    Raises:
        UserError: for an unknown dtype, or a start token that is no id.
    """

    checkpoint: str
    dtype: str | None = None
    param_dtype: str = "float32"
    start_token: int | None = None
    predicts_eos: bool | None = None

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError(
                f"{field_name(self, 'checkpoint')} must be a checkpoint, got ''; name a MODEL_DIR"
            )
        if self.dtype is not None:
            check_field_choice(self, "dtype", DTYPES)
        check_field_choice(self, "param_dtype", DTYPES)
        check_fields(self, ("start_token",), "at least 0", lambda n: n >= 0)
        if isinstance(self.start_token, float):
            raise field_error(self, "start_token", "a whole number")
