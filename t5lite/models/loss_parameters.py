"""Parameters of a model that only losses read: weights of tasks, and maps to a teacher's width."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5lite.models.config import T5Config
from t5lite.models.initializers import ConstantInit, ScaledInit, parameter


class WithLossParameters(nn.Module):
    """What all models share.

    Parameters:
        task_weights/log_variances [tasks], zeros, with `T5Config.num_weighted_tasks`;
        teacher_maps/encoder and teacher_maps/decoder [embed, teacher_embed], truncated normal with
        variance 1 / embed, with `T5Config.teacher_embed_dim`, where a stack has layers.
    """

    config: T5Config

    # NOTE: not in `setup`, which subclasses have.
    @nn.compact
    def loss_parameters(self) -> dict[str, Any]:
        """Returns the parameters by name."""
        config = self.config
        found: dict[str, Any] = {}
        if config.num_weighted_tasks:
            found["task_weights"] = _LogVariances(config.num_weighted_tasks, name="task_weights")()
        if config.teacher_embed_dim is not None:
            found["teacher_maps"] = _TeacherMaps(config, name="teacher_maps")()
        return found

    def log_variances(self) -> Float[Array, "tasks"]:
        """Returns the log-variance of each task."""
        log_variances: Float[Array, "tasks"] = self.loss_parameters()["task_weights"]
        return log_variances

    def to_teacher(self, x: Float[Array, "b l e"], stack: str) -> Float[Array, "b l teacher_e"]:
        """Returns outputs of a layer in the width of the teacher."""
        return jnp.einsum("ble,et->blt", x, self.loss_parameters()["teacher_maps"][stack])

    def init_loss_parameters(self) -> None:
        """Makes the parameters, in the first call of a model."""
        if self.is_initializing():
            self.loss_parameters()


class _LogVariances(nn.Module):
    count: int

    @nn.compact
    def __call__(self) -> Float[Array, "tasks"]:
        init = parameter(ConstantInit(0.0), ("tasks",))
        values: Any = self.param("log_variances", init, (self.count,))
        return values


class _TeacherMaps(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self) -> dict[str, Float[Array, "embed teacher_embed"]]:
        config = self.config
        assert config.teacher_embed_dim is not None
        init = parameter(ScaledInit(1.0, "truncated_normal"), ("embed", "teacher_embed"))
        widths = {"encoder": config.encoder_config().embed_dim, "decoder": config.embed_dim}
        maps: dict[str, Any] = {}
        for stack, width in widths.items():
            if getattr(config, f"num_{stack}_layers"):
                maps[stack] = self.param(stack, init, (width, config.teacher_embed_dim))
        return maps
