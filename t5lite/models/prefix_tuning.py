"""Prefix tuning: trained keys and values that all tokens attend to."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Array, Float

from t5lite.core.fields import check_counts, field_name
from t5lite.core.patterns import check_patterns, matches
from t5lite.models.adapters import Axis
from t5lite.models.initializers import ScaledInit
from t5lite.models.token_adapters import AttentionSite


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixTuning:
    """Adds the same keys and values to some attention layers of all examples.

    Parameters of an attention layer: prefix_key and prefix_value [adapter, heads, kv], normal with
    variance 1 / kv.

    Args:
        length: number of keys.
        targets: regular expressions; attention layers whose whole name one of them matches have a
            prefix: `encoder/layers/attention`, `decoder/layers/self_attention` and
            `decoder/layers/encoder_decoder_attention`.

    Raises:
        UserError: for a length below 1, or a pattern that is no regular expression.

    Source: Li and Liang, "Prefix-Tuning"; huggingface/peft@v0.21.2:src/peft/peft_model.py,
    PeftModel.get_prompt, for self-attention of decoders.
    Differs from both in that there is no network that makes keys and values while training, and
    from PEFT in that a prefix is also in the encoder and in cross-attention, and no window hides
    it.
    """

    length: int
    targets: Sequence[str] = (".*attention",)

    def __post_init__(self) -> None:
        check_counts(self, "length")
        check_patterns(field_name(self, "targets"), self.targets)
        object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def prefix_length(self) -> int:
        """How many keys it adds."""
        return self.length

    def attaches_to(self, name: str) -> bool:
        """Whether the attention layer of this full name has a prefix."""
        return matches(name, self.targets)

    def keys_values(
        self, site: AttentionSite
    ) -> tuple[Float[Array, "k g d"], Float[Array, "k g d"]]:
        """Returns the keys and the values."""
        # NOTE: not zeros, from which all keys would stay equal. The exact scale is not important.
        init = ScaledInit(1.0, "normal", in_axes=(2,))
        axes = Axis("adapter", self.length), site.heads, site.kv
        key, value = (site.parameter(f"prefix_{part}", init, *axes) for part in ("key", "value"))
        return key, value
