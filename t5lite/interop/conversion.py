"""The choices of `t5lite convert` besides its input and output."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from t5lite.core.errors import UserError
from t5lite.core.fields import check_field_choice, check_fields, field_error, field_name
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
        ignore_fields: fields of a Hugging Face config.json that t5lite does not know and that
            leave the model as it is; any other unknown field is an error.
        dtype: of parameters written for Hugging Face, "float32" or "bfloat16".
        max_input_tokens: `model_max_length` of the tokenizer written for Hugging Face.
        max_target_tokens: tokens after which `generate` stops, written to generation_config.json.
        mlp_activations, encoder_attention: of a T5X checkpoint, as in `T5Config`, if they differ
            from what its arrays suggest.
        cross_positions: of a model that `--adapt` makes, as in `T5Config`.
        seed: of the parameters that `--adapt` initializes.
        merge_adapters: whether adapters are merged into their base; otherwise they stay as they
            are, and what is written for t5lite holds them alone and names their base.
        base_name: of the base model of Hugging Face, written to PEFT's adapter_config.json.

    Raises:
        UserError: for an unknown dtype, a number of tokens under 1, or `ignore_fields` that are no
            list of names, or a seed out of range.
    """

    gin_name: ClassVar[str] = "convert"

    mesh: Mesh = Mesh()
    vocabulary: Vocabulary | None = None
    optimizer_state: bool = False
    allow_nonfinite: bool = False
    ignore_fields: Sequence[str] = ()
    dtype: str = "float32"
    max_input_tokens: int = 512
    max_target_tokens: int = 512
    mlp_activations: Sequence[str] | None = None
    encoder_attention: str | None = None
    cross_positions: str = "none"
    seed: int = 0
    merge_adapters: bool = True
    base_name: str | None = None

    def __post_init__(self) -> None:
        check_field_choice(self, "dtype", DTYPES)
        names = self.ignore_fields
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise field_error(self, "ignore_fields", "a list of names")
        check_fields(
            self,
            ("max_input_tokens", "max_target_tokens"),
            "a whole number >= 1",
            lambda n: n == int(n) and n >= 1,
        )
        rule = "a whole number in [0, 2**31)"
        check_fields(self, ("seed",), rule, lambda n: type(n) is int and 0 <= n < 2**31)

    def check_used(
        self, kinds: Sequence[str], *, to: str, adapts: bool, has_adapters: bool = False
    ) -> None:
        """Checks that every choice that was made has an effect on a conversion.

        Args:
            kinds: the formats of the checkpoints that are read.
            to: the format that is written.
            adapts: whether a decoder-only model becomes an encoder-decoder.
            has_adapters: whether the model that is read has adapters.

        Raises:
            UserError: for the first that has none.
        """
        usual = Conversion()
        moments = kinds == ["T5X"] and to == "t5lite" and not adapts
        for name, is_used, where in (
            ("optimizer_state", moments, "T5X to t5lite"),
            ("ignore_fields", {"Hugging Face", "PEFT"} & set(kinds), "Hugging Face and PEFT"),
            ("mlp_activations", "T5X" in kinds, "T5X"),
            ("encoder_attention", "T5X" in kinds, "T5X"),
            ("dtype", to == "huggingface", "--to=huggingface"),
            ("max_input_tokens", to == "huggingface", "--to=huggingface"),
            ("max_target_tokens", to == "huggingface", "--to=huggingface"),
            ("cross_positions", adapts, "--adapt"),
            ("seed", adapts, "--adapt"),
            ("merge_adapters", has_adapters and to == "t5lite", "adapters to t5lite"),
            ("base_name", to == "peft", "--to=peft"),
        ):
            if not is_used and (getattr(self, name) or None) != (getattr(usual, name) or None):
                done = f"a conversion of {' and '.join(kinds)} to {to}"
                raise UserError(
                    f"{field_name(self, name)} is for {where}, got {done}"
                    f"{' with --adapt' if adapts else ''}"
                )
