"""The methods that are compared: the files and bindings of each, and the learning rates tried."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """What a method adds to the run file of full fine-tuning.

    Args:
        adapter: the name of a file of gin/adapters; None for full fine-tuning.
        bindings: more than the file binds.
        rates: peaks of the learning rate, of which the held-out rows choose one.
    """

    adapter: str | None
    bindings: tuple[str, ...] = ()
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)

    @property
    def flags(self):
        """The flags of `t5lite train` after the run file."""
        files = () if self.adapter is None else (f"--gin_file=gin/adapters/{self.adapter}.gin",)
        return (*files, *(f"--gin.{binding}" for binding in self.bindings))


METHODS = {
    "full": Method(adapter=None, rates=(3e-4, 1e-3, 3e-3)),
    "lora": Method(adapter="lora"),
    "rslora": Method(adapter="lora", bindings=("LoRA.rank_stabilized=True",)),
    "dora": Method(adapter="dora"),
    "pissa": Method(adapter="pissa"),
    "adalora": Method(adapter="adalora"),
    # An eighth of the width of this small model.
    "bottleneck": Method(adapter="bottleneck", bindings=("Bottleneck.bottleneck_dim=16",)),
    "ia3": Method(adapter="ia3", rates=(1e-2, 3e-2, 1e-1)),
    "norms": Method(adapter="norms", rates=(1e-2, 3e-2, 1e-1)),
    "prompt": Method(adapter="prompt", rates=(3e-2, 1e-1, 3e-1)),
    "p_tuning": Method(adapter="p_tuning"),
    "prefix": Method(adapter="prefix", rates=(1e-2, 3e-2, 1e-1)),
}
