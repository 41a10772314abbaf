"""The mesh of devices: `data` and `fsdp` split the batch, `fsdp` and `tensor` the parameters."""

import dataclasses
import math

import jax
from jax.sharding import AxisType

from t5lite.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Sizes of the mesh axes, in devices; one may be -1 and takes all that the others leave.

    Args:
        data: copies of the parameters, each working on its share of the batch.
        fsdp: shares of the batch among which parameters and optimizer state are split too.
        tensor: shares of heads, feed-forward width and vocabulary.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                "Mesh axes must be whole numbers > 0, at most one of them -1 for the rest, "
                f"got {dataclasses.asdict(self)}"
            )

    def make(self) -> jax.sharding.Mesh:
        """Returns the mesh over all devices.

        Raises:
            UserError: where the sizes do not make up the number of devices.
        """
        sizes = dataclasses.asdict(self)
        num_devices = jax.device_count()
        given = math.prod(size for size in sizes.values() if size != -1)
        if num_devices % given or (-1 not in sizes.values() and given != num_devices):
            raise UserError(
                f"Mesh must use all {num_devices} devices, got {sizes}; "
                "set one axis to -1 to let it take the rest"
            )
        shape = [num_devices // given if size == -1 else size for size in sizes.values()]
        return jax.make_mesh(shape, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))
