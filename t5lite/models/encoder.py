"""The encoder: every token attends to the whole input, or to what its mixer and window allow."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool, Int

from t5lite.core.numbers import Number
from t5lite.models.attention_layer import Attention
from t5lite.models.config import T5Config
from t5lite.models.dropout import Dropout
from t5lite.models.mixers import MIXERS
from t5lite.models.norms import Sublayers, make_norm
from t5lite.models.positions import POSITIONS
from t5lite.models.stack import (
    Stream,
    constrained,
    feed_forward,
    stacked_layers,
    window_pattern,
)


class EncoderLayer(Sublayers):
    """Self-attention and feed-forward.

    Parameters:
        attention, mlp, and the norms of these sublayers; relpos_bias with positions "layer_bias";
        what the mixer adds.

    Args:
        kind: which of the stack's windows is this layer's.

    Differs from T5X in the name of LongT5's `global_layer_norm`, there `attention/T5LayerNorm_0`.
    """

    config: T5Config
    kind: int = 0

    def setup(self) -> None:
        config = self.config
        name = "encoder/layers"
        self.add_sublayers("attention", "mlp")
        self.attention = Attention(config, f"{name}/attention")
        self.mlp = feed_forward(config, f"{name}/mlp")
        self.relpos_bias = POSITIONS[config.positions].layer_bias(config, bidirectional=True)
        self.part_names = _add_parts(self, MIXERS[config.encoder_attention].layer_parts(config))

    def __call__(
        self,
        x: Stream,
        contexts: tuple[Any, ...],
        is_token: Bool[Array, "b l"],
        dropout_rate: Number | None,
    ) -> tuple[Stream, None]:
        mixer = MIXERS[self.config.encoder_attention]
        attended = mixer.mix(
            self.attention,
            self.sublayer_input("attention", x),
            contexts[self.kind],
            None if self.relpos_bias is None else self.relpos_bias(x.shape[1]),
            {name: getattr(self, name) for name in self.part_names},
            dropout_rate,
        )
        x = self.add_output("attention", x, self.attention.out(attended), dropout_rate)
        y = self.mlp(self.sublayer_input("mlp", x), is_token, dropout_rate=dropout_rate)
        return constrained(self.add_output("mlp", x, y, dropout_rate)), None


class Encoder(nn.Module):
    """Embedded tokens to encoded ones.

    Parameters:
        layers/..., encoder_norm/scale; relpos_bias/rel_embedding with positions "shared_bias";
        what the mixer adds.
    """

    config: T5Config

    def setup(self) -> None:
        config = self.config
        self.pattern = window_pattern(config.encoder_windows, config.num_encoder_layers)
        self.relpos_bias = POSITIONS[config.positions].stack_bias(config, bidirectional=True)
        self.part_names = _add_parts(self, MIXERS[config.encoder_attention].stack_parts(config))
        self.layers = stacked_layers(
            EncoderLayer, config, self.pattern, num_arguments=3, init=self.is_initializing()
        )
        self.encoder_norm = make_norm(config)
        self.input_dropout = Dropout()
        self.output_dropout = Dropout()

    def __call__(
        self, x: Stream, segment_ids: Int[Array, "b l"], *, dropout_rate: Number | None
    ) -> Stream:
        x = constrained(self.input_dropout(x, dropout_rate))
        mixer = MIXERS[self.config.encoder_attention]
        contexts = mixer.contexts(
            self.config,
            segment_ids,
            self.pattern.windows,
            self.relpos_bias,
            {name: getattr(self, name) for name in self.part_names},
        )
        x, _ = self.layers(x, contexts, segment_ids > 0, dropout_rate)
        return self.output_dropout(self.encoder_norm(x), dropout_rate)


def _add_parts(module: nn.Module, parts: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Makes modules attributes of `module`, by which their parameters are named."""
    for name, part in parts.items():
        setattr(module, name, part)
    return tuple(parts)
