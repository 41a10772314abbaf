"""Adapters from outside the package."""

import dataclasses
import fnmatch

import jax.numpy as jnp

from t5lite.models.adapters import Axis
from t5lite.models.initializers import ConstantInit, ScaledInit


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """LoRA: adds scale * up(down(x)); `up` starts at 0, so the model starts unchanged."""

    patterns: tuple[str, ...] = ("*attention/query", "*attention/value")
    rank: int = 2
    scale: float = 2.0

    def attaches_to(self, name):
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)

    def wrap(self, site, apply):
        rank = Axis("adapter", self.rank)
        inputs = len(site.stacked) + len(site.inputs)
        init = ScaledInit(1.0, "normal", in_axes=tuple(range(len(site.stacked), inputs)))
        down = site.parameter("lora_down", init, *site.stacked, *site.inputs, rank)
        up = site.parameter("lora_up", ConstantInit(0.0), *site.stacked, rank, *site.outputs)
        to_rank, from_rank = site.through("r")

        def adapted(x):
            hidden = jnp.einsum(to_rank, x, down.astype(x.dtype))
            return apply(x) + self.scale * jnp.einsum(from_rank, hidden, up.astype(x.dtype))

        return adapted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescaled:
    """(IA)3: multiplies the output of keys and values, and the input of the last map."""

    def attaches_to(self, name):
        return name.endswith(("attention/key", "attention/value", "mlp/wo"))

    def wrap(self, site, apply):
        is_last = site.name.endswith("mlp/wo")
        axes = site.inputs if is_last else site.outputs
        factor = site.parameter("ia3", ConstantInit(1.0), *axes)

        def adapted(x):
            wide = jnp.expand_dims(factor.astype(x.dtype), (0, 1))
            return apply(x * wide) if is_last else apply(x) * wide

        return adapted


@dataclasses.dataclass
class Thawed:
    """Not frozen, so a checkpoint could not describe it."""

    def attaches_to(self, name):
        return True

    def wrap(self, site, apply):
        return apply
