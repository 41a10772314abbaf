"""Prompt tuning and P-tuning: trained vectors before the embedded tokens of each example."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.core.fields import check_counts, check_field_choice, field_error
from t5lite.models.adapters import Axis
from t5lite.models.initializers import ConstantInit, NormalInit, ScaledInit
from t5lite.models.token_adapters import InputSite

NETWORKS = ("mlp", "lstm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTuning:
    """Vectors before the embedded tokens of each example.

    Parameters:
        prompt_embedding [adapter, activation_embed], normal with standard deviation 1.

    Args:
        length: number of vectors.
        initial_text: the vectors of a run that starts from a checkpoint without them are the
            embedded tokens of this text, repeated or truncated to `length`; None to draw them.

    Raises:
        UserError: for a length below 1, or a text that is empty.

    Source: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", section 3.2.
    """

    length: int
    initial_text: str | None = None

    def __post_init__(self) -> None:
        check_counts(self, "length")
        if self.initial_text is not None and not self.initial_text:
            raise field_error(self, "initial_text", "a text, or None")

    @property
    def prompt_length(self) -> int:
        """How many vectors it adds."""
        return self.length

    def vectors(self, site: InputSite) -> Float[Array, "k e"]:
        """Returns the vectors."""
        return _embedding(site, self.length)

    def from_embedded(self, vectors: Float[Array, "k e"]) -> Mapping[str, Float[Array, "..."]]:
        """Returns the first values, which are the embedded tokens of `initial_text`."""
        return {"prompt_embedding": vectors}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PTuning:
    """Prompt tuning whose vectors a small network computes.

    Parameters:
        prompt_embedding [adapter, activation_embed], normal with standard deviation 1. Kernels of
        the network [inputs, outputs], normal with variance 1 / inputs, and biases, zeros:
        prompt_mlp_N_kernel, prompt_mlp_N_bias, and for each layer of an LSTM
        prompt_lstm_N_{input,state}_kernel [directions, inputs, 4 hidden] and prompt_lstm_N_bias
        [directions, 4 hidden].

    Args:
        length: number of vectors.
        hidden_dim: width of the network; None for that of the vectors.
        network: "mlp", three linear maps, or "lstm", which reads the prompt in both directions and
            is followed by two linear maps. A ReLU is between maps.
        num_layers: of the LSTM.

    Raises:
        UserError: for a number below 1, an unknown network, or layers of an MLP.

    Source: Liu et al., "GPT Understands, Too";
    huggingface/peft@v0.21.2:src/peft/tuners/p_tuning/model.py, PromptEncoder.
    Differs from PEFT in that an LSTM has one bias instead of the sum of two, and no dropout.
    """

    length: int
    hidden_dim: int | None = None
    network: str = "mlp"
    num_layers: int = 2

    def __post_init__(self) -> None:
        check_counts(self, "length", "num_layers")
        if self.hidden_dim is not None:
            check_counts(self, "hidden_dim")
        check_field_choice(self, "network", NETWORKS)
        if self.network == "mlp" and self.num_layers != 2:
            raise field_error(self, "num_layers", "2, its default, with PTuning.network 'mlp'")

    @property
    def prompt_length(self) -> int:
        """How many vectors it adds."""
        return self.length

    def vectors(self, site: InputSite) -> Float[Array, "k e"]:
        """Returns the vectors."""
        embed = site.embed.size
        hidden = self.hidden_dim or embed
        x = _embedding(site, self.length)
        sizes = [hidden, hidden, embed]
        if self.network == "lstm":
            for number in range(self.num_layers):
                x = _both_directions(site, f"prompt_lstm_{number}", x, hidden)
            sizes = [2 * hidden, embed]
        for number, size in enumerate(sizes):
            name = f"prompt_mlp_{number}"
            kernel = _kernel(site, f"{name}_kernel", (), x.shape[1], size)
            x = x @ kernel + site.parameter(f"{name}_bias", ConstantInit(0.0), _added(size))[None]
            if number < len(sizes) - 1:
                x = jax.nn.relu(x)
        return x


def _added(size: int) -> Axis:
    return Axis("adapter", size)


def _embedding(site: InputSite, length: int) -> Float[Array, "k e"]:
    vectors: Float[Array, "k e"]
    vectors = site.parameter("prompt_embedding", NormalInit(), _added(length), site.embed)
    return vectors


def _kernel(
    site: InputSite, name: str, stacked: tuple[Axis, ...], inputs: int, outputs: int
) -> Float[Array, "..."]:
    init = ScaledInit(1.0, "normal", in_axes=(-2,))
    kernel: Float[Array, "..."]
    kernel = site.parameter(name, init, *stacked, Axis("adapter_inputs", inputs), _added(outputs))
    return kernel


def _both_directions(
    site: InputSite, name: str, x: Float[Array, "k inputs"], hidden: int
) -> Float[Array, "k outputs"]:
    """Returns the states of an LSTM that reads forward, and of one that reads backward."""
    two = (Axis("adapter_directions", 2),)
    into = _kernel(site, f"{name}_input_kernel", two, x.shape[1], 4 * hidden)
    state = _kernel(site, f"{name}_state_kernel", two, hidden, 4 * hidden)
    bias = site.parameter(f"{name}_bias", ConstantInit(0.0), *two, _added(4 * hidden))
    forward = _lstm(x @ into[0] + bias[0][None], state[0])
    backward = _lstm(x[::-1] @ into[1] + bias[1][None], state[1])[::-1]
    return jnp.concatenate([forward, backward], axis=1)


def _lstm(
    gates: Float[Array, "k gates"], kernel: Float[Array, "hidden gates"]
) -> Float[Array, "k hidden"]:
    """Returns the hidden states; the gates of input, forgetting, cell and output are in order."""

    def step(
        carry: tuple[Float[Array, "hidden"], Float[Array, "hidden"]], x: Float[Array, "gates"]
    ) -> tuple[tuple[Float[Array, "hidden"], Float[Array, "hidden"]], Float[Array, "hidden"]]:
        hidden, cell = carry
        into, forget, new, out = jnp.split(x + hidden @ kernel, 4)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(into) * jnp.tanh(new)
        hidden = jax.nn.sigmoid(out) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros(kernel.shape[0], gates.dtype)
    return jax.lax.scan(step, (zeros, zeros), gates)[1]
