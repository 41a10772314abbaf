"""Changes to try if a step does not fit into memory."""

from collections.abc import Mapping

from t5lite.models.model import Model
from t5lite.models.stack import REMAT_POLICIES
from t5lite.planning.costs import Costs
from t5lite.planning.suggest import split_sizes


def remedies(
    costs: Costs,
    model: Model,
    mesh: Mapping[str, int],
    *,
    rows: int,
    microbatches: int,
    loss_chunks: int | None,
    param_dtype: str,
) -> list[str]:
    """Returns flags to try, each with its effect, those that save most first.

    Args:
        rows: rows of the batch on each device.
        loss_chunks: `CrossEntropy.chunks`; None for another loss.
    """
    config = model.config
    sizes = split_sizes(config)
    memory = costs.memory
    state = memory.params + memory.optimizer
    for_state = []
    for_rest = []
    has_more = mesh["data"] % 2 == 0
    if has_more and all(size % (2 * mesh["fsdp"]) == 0 for size in sizes["fsdp"]):
        for_state.append(
            f"--gin.Mesh.fsdp={2 * mesh['fsdp']} --gin.Mesh.data=-1 halves parameters and "
            f"optimizer state ({state / 1e9:.1f} GB)"
        )
    if has_more and all(size % (2 * mesh["tensor"]) == 0 for size in sizes["tensor"]):
        for_state.append(
            f"--gin.Mesh.tensor={2 * mesh['tensor']} --gin.Mesh.data=-1 halves parameters and "
            "optimizer state, for more traffic"
        )
    if not memory.host_optimizer:
        for_state.append(
            "--gin.train.offload_optimizer=True keeps the optimizer state "
            f"({memory.optimizer / 1e9:.1f} GB) in the host's memory between updates"
        )
    if param_dtype == "float32":
        for_state.append(
            "--gin.train.param_dtype=bfloat16 halves the stored parameters "
            f"({memory.params / 1e9:.1f} GB)"
        )
    policies = list(REMAT_POLICIES)
    if config.remat != policies[-1]:
        stronger = policies[policies.index(config.remat) + 1]
        for_rest.append(f"--gin.T5Config.remat={stronger} keeps fewer activations")
    if rows % (2 * microbatches) == 0:
        for_rest.append(
            f"--gin.train.microbatches={2 * microbatches} halves activations "
            f"({memory.temporary / 1e9:.1f} GB with all other temporary arrays)"
        )
    if loss_chunks is not None and loss_chunks < 8:
        for_rest.append(
            "--gin.CrossEntropy.chunks=8 computes the logits of an eighth of a row at a time"
        )
    return for_state + for_rest if state > memory.temporary else for_rest + for_state
