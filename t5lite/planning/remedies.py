"""What to change where a step does not fit."""

from collections.abc import Mapping

from t5lite.models.architectures import Model
from t5lite.planning.costs import Costs


def remedies(
    costs: Costs,
    model: Model,
    mesh: Mapping[str, int],
    *,
    rows: int,
    microbatches: int,
    param_dtype: str,
) -> list[str]:
    """Returns flags to try, each with what it does, those that save most first.

    Args:
        rows: of the batch on each device.
    """
    config, memory = model.config, costs.memory
    state = memory.params + memory.optimizer
    for_state, for_rest = [], []
    more = mesh["fsdp"] * 2
    if mesh["data"] > 1 and config.embed_dim % more == 0:
        for_state.append(
            f"--gin.Mesh.fsdp={more} --gin.Mesh.data=-1 halves parameters and optimizer state "
            f"({state / 1e9:.1f} GB)"
        )
    if config.num_heads % (2 * mesh["tensor"]) == 0 and mesh["data"] * mesh["fsdp"] > 1:
        for_state.append(
            f"--gin.Mesh.tensor={2 * mesh['tensor']} halves parameters, optimizer state and most "
            "activations, for more traffic"
        )
    if not memory.host_optimizer:
        for_state.append(
            "--gin.train.offload_optimizer=True keeps the optimizer's state "
            f"({memory.optimizer / 1e9:.1f} GB) in the host's memory"
        )
    if param_dtype == "float32":
        for_state.append(
            "--gin.train.param_dtype=bfloat16 halves the parameters "
            f"({memory.params / 1e9:.1f} GB), rounded stochastically"
        )
    order = ["none", "attention", "minimal", "full"]
    if config.remat != "full":
        stronger = order[order.index(config.remat) + 1]
        for_rest.append(f"--gin.T5Config.remat={stronger} keeps fewer activations")
    if rows > microbatches:
        for_rest.append(
            f"--gin.train.microbatches={2 * microbatches} halves activations "
            f"({memory.temporary / 1e9:.1f} GB with all else that is temporary)"
        )
    for_rest.append("--gin.CrossEntropy.chunks=8 makes the logits of an eighth of a row at a time")
    by_state = state > memory.temporary
    return for_state + for_rest if by_state else for_rest + for_state
