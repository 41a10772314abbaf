"""What an adapter that adds no linear map is: keys and values for attention, or embedded tokens.

Like those of maps, such adapters are frozen dataclasses that know no model: they select attention
layers or stacks by name and read sizes from the site.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from t5lite.models.adapters import Axis

# Full names of attention layers.
ENCODER_ATTENTION = "encoder/layers/attention"
DECODER_ATTENTION = "decoder/layers/self_attention"
CROSS_ATTENTION = "decoder/layers/encoder_decoder_attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSite:
    """An attention layer as an adapter sees it.

    Args:
        name: full name of the layer, such as `decoder/layers/self_attention`; the same for all
            layers of a stack.
        heads: of keys and values.
        kv: width of a head.
        parameter: `parameter(name, initializer, *axes)` makes a parameter of the layer and returns
            its value. An axis that the adapter adds has the logical name "adapter".
    """

    name: str
    heads: Axis
    kv: Axis
    parameter: Callable[..., Any]


@runtime_checkable
class AttentionAdapter(Protocol):
    """Keys and values that all queries attend to, whatever their example, and before all others.

    They are after key norms and before rotary positions. Positions count them as the tokens before
    the first of each example.

    - `attaches_to(name)`: whether it changes the attention layer of this full name.
    - `prefix_length`: how many keys it adds.
    - `keys_values(site)`: the keys and the values.
    """

    @property
    def prefix_length(self) -> int: ...
    def attaches_to(self, name: str) -> bool: ...
    def keys_values(
        self, site: AttentionSite
    ) -> tuple[Float[Array, "k g d"], Float[Array, "k g d"]]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSite:
    """The input of a model as an adapter sees it.

    Args:
        embed: width of embedded tokens.
        parameter: as in `AttentionSite`; the names of a parameter's axes differ, so there are also
            "adapter_inputs" and "adapter_directions".
    """

    embed: Axis
    parameter: Callable[..., Any]


@runtime_checkable
class InputAdapter(Protocol):
    """Vectors in place of the first embedded tokens of each example, which batches leave room for.

    They are those of the encoder's input if there is an encoder.

    - `prompt_length`: how many vectors.
    - `vectors(site)`: the vectors.
    """

    @property
    def prompt_length(self) -> int: ...
    def vectors(self, site: InputSite) -> Float[Array, "k e"]: ...


@runtime_checkable
class TextAdapter(InputAdapter, Protocol):
    """An adapter of the input some of whose parameters start from the embedded tokens of a text.

    - `initial_text`: the text; None for none.
    - `from_embedded(vectors)`: the first values of these parameters by name, given as many embedded
      tokens as the adapter has vectors. A run that starts from a checkpoint calls it.
    """

    @property
    def initial_text(self) -> str | None: ...
    def from_embedded(self, vectors: Float[Array, "k e"]) -> Mapping[str, Float[Array, "..."]]: ...


def input_adapters(adapters: Sequence[Any]) -> list[InputAdapter]:
    """Returns the adapters of the input."""
    return [adapter for adapter in adapters if isinstance(adapter, InputAdapter)]


def prompt_length(adapters: Sequence[Any]) -> int:
    """Returns how many tokens adapters put before those of each example."""
    return sum(adapter.prompt_length for adapter in input_adapters(adapters))


def attention_adapters(adapters: Sequence[Any], name: str) -> list[AttentionAdapter]:
    """Returns the adapters of the attention layer of this name."""
    return [a for a in adapters if isinstance(a, AttentionAdapter) and a.attaches_to(name)]


def prefix_length(adapters: Sequence[Any], name: str) -> int:
    """Returns how many keys adapters add to the attention layer of this name."""
    return sum(adapter.prefix_length for adapter in attention_adapters(adapters, name))
