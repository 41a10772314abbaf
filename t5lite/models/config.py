"""The configuration of a model: the fields of `T5Fields`, checked."""

import dataclasses
from typing import Any

from t5lite.core.errors import choose
from t5lite.core.fields import check_field_choice, check_fields, field_error, field_name
from t5lite.core.named import named
from t5lite.models.adapters import resolve_adapter
from t5lite.models.attention import ATTENTION
from t5lite.models.combinations import (
    check_encoder_sizes,
    check_logits,
    check_rotary,
    check_stack_input,
    check_stacks,
)
from t5lite.models.config_fields import DTYPES, T5Fields
from t5lite.models.feedforward import ACTIVATIONS
from t5lite.models.mixers import MIXERS
from t5lite.models.norms import NORM_PLACEMENTS, NORMS
from t5lite.models.positions import CROSS_POSITIONS, POSITIONS
from t5lite.models.stack import REMAT_POLICIES

# Upper bound on widths, counts, and lengths in tokens: what exceeds it is a mistake.
MAX_SIZE = 1 << 24

# Fields that name a part, and the table of its parts.
_PARTS = {
    "norm": NORMS,
    "norm_placement": NORM_PLACEMENTS,
    "positions": POSITIONS,
    "cross_positions": CROSS_POSITIONS,
    "encoder_attention": MIXERS,
    "dtype": DTYPES,
    "remat": REMAT_POLICIES,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(T5Fields):
    """Sizes and parts of a model; the arguments are those of `T5Fields`.

    Raises:
        UserError: for a size below 1 or above `MAX_SIZE`, a number out of range, an unknown name,
            or choices that are mutually exclusive.
    """

    def __post_init__(self) -> None:
        self._check_sizes()
        check_fields(
            self,
            (
                "norm_epsilon",
                "rotary_base",
                "rotary_base_windowed",
                "capacity_factor",
                "attention_scale",
            ),
            "over 0",
            lambda x: x > 0,
        )
        check_fields(
            self,
            ("attention_soft_cap", "logits_soft_cap", "encoder_attention_scale"),
            "over 0",
            lambda x: x > 0,
        )
        check_fields(self, ("dropout_rate",), "in [0, 1)", lambda rate: 0 <= rate < 1)
        for field, table in _PARTS.items():
            check_field_choice(self, field, table)
        named(field_name(self, "attention"), self.attention, ATTENTION)
        # Lists, as gin files have them, could not be part of a compiled program's identity.
        for field in (
            "mlp_activations",
            "adapters",
            "rotary_scaling",
            "encoder_windows",
            "decoder_windows",
        ):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field in ("encoder_windows", "decoder_windows"):
            windows = tuple(self._window(field, window) for window in getattr(self, field))
            object.__setattr__(self, field, windows)
        adapters = (resolve_adapter(field_name(self, "adapters"), a) for a in self.adapters)
        object.__setattr__(self, "adapters", tuple(adapters))
        if not self.mlp_activations:
            raise field_error(self, "mlp_activations", "at least one activation")
        for name in self.mlp_activations:
            choose(field_name(self, "mlp_activations"), name, ACTIVATIONS)
        self._check_positions()
        self._check_combinations()

    def _check_sizes(self) -> None:
        from_zero = ("num_encoder_layers", "num_decoder_layers", "num_token_types")
        least = dict.fromkeys((*from_zero, "num_weighted_tasks", "start_token"), 0)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            lowest = least.get(field.name, 1)
            if field.type is int and not (isinstance(value, int) and value >= lowest):
                raise field_error(self, field.name, f"a whole number >= {lowest}")
            of_size = field.type in (int, int | None) and isinstance(value, int)
            if of_size and value > MAX_SIZE:
                raise field_error(self, field.name, f"at most {MAX_SIZE:,}")
        groups = self.num_kv_heads
        if groups is not None and not (
            isinstance(groups, int) and groups > 0 and self.num_heads % groups == 0
        ):
            raise field_error(self, "num_kv_heads", f"a divisor of num_heads ({self.num_heads})")
        check_fields(self, ("num_experts",), "at least 2", lambda n: n >= 2)
        if self.experts_per_token > (1 if self.num_experts is None else 2):
            rule = "1 or 2, and 1 without num_experts"
            raise field_error(self, "experts_per_token", rule)

    def _window(self, field: str, window: Any) -> tuple[int, int] | None:
        """Returns the tokens seen to the left and to the right; None for all."""
        if window is None:
            return None
        pair = tuple(window) if isinstance(window, tuple | list) else (window, window)
        if [type(n) for n in pair] != [int, int] or not 0 <= min(pair) <= max(pair) <= MAX_SIZE:
            numbers = f"whole numbers of at most {MAX_SIZE:,}"
            rule = f"a list of None, {numbers}, or pairs (left, right) of them"
            raise field_error(self, field, rule)
        return pair[0], pair[1]

    def _check_positions(self) -> None:
        # Half of a direction's buckets hold one distance each.
        directions = (2 if self.num_encoder_layers else 1, 1 if self.num_decoder_layers else 2)
        least = 2 * directions[0]
        exact = self.num_buckets // directions[1] // 2
        if self.num_buckets < least:
            raise field_error(self, "num_buckets", f"at least {least}")
        if self.max_distance <= exact:
            rule = f"over {exact}, the distances with a bucket of their own"
            raise field_error(self, "max_distance", rule)
        if self.positions == "rotary" and self.head_dim % 2:
            raise field_error(self, "head_dim", "even for rotary positions")

    def _check_combinations(self) -> None:
        check_encoder_sizes(self)
        check_stacks(self)
        check_stack_input(self)
        check_rotary(self)
        check_logits(self)
        if self.encoder_attention != "full":
            needed = {
                "positions": (self.positions == "shared_bias", "'shared_bias'"),
                "num_encoder_layers": (self.num_encoder_layers > 0, "over 0"),
                "encoder_windows": (not self.encoder_windows, "empty"),
            }
            for field, (holds, rule) in needed.items():
                if not holds:
                    owner = f"{field_name(self, 'encoder_attention')} {self.encoder_attention!r}"
                    raise field_error(self, field, f"{rule} with {owner}")
        for stack in ("encoder", "decoder"):
            if getattr(self, f"{stack}_windows") and not getattr(self, f"num_{stack}_layers"):
                raise field_error(self, f"{stack}_windows", f"empty without {stack} layers")
        for field in ("start_token", "end_of_image_token"):
            token = getattr(self, field)
            if token is not None and not (type(token) is int and 0 <= token < self.vocab_size):
                raise field_error(self, field, f"under vocab_size ({self.vocab_size})")
        if self.prefix_attention and self.num_encoder_layers:
            raise field_error(self, "prefix_attention", "False for models with an encoder")
