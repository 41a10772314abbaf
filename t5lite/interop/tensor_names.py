"""Prefixes that wrappers put before the names of a model's tensors."""

from collections.abc import Collection, Mapping

from t5lite.core.errors import UserError, shown
from t5lite.interop.foreign import StoredArray

# Who puts a prefix before names, or inside of them. Other prefixes are removed too.
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "base_model.model.": "PEFT",
    "auto_model.": "sentence-transformers",
}
ADAPTER_PARTS = ("lora_", "ia3_l", "prompt_embeddings", ".base_layer.", "adapter_")
# A part of a model that was compiled has it inside the name.
COMPILED = "_orig_mod."


def without_wrappers(
    tensors: Mapping[str, StoredArray], roots: Collection[str], owner: str, *, usual: str = ""
) -> tuple[dict[str, StoredArray], list[str]]:
    """Returns the tensors without the prefixes of wrappers, and remarks on what was removed.

    Args:
        roots: the first parts of the names without prefixes. Everything before one is a prefix.
        usual: the last prefix of some of the names, which needs no remark.

    Raises:
        UserError: if the tensors of an adapter are among them, they have several prefixes, as those
            of several models in one file do, or two get the same name.
    """
    if adapters := [name for name in tensors if any(part in name for part in ADAPTER_PARTS)]:
        raise UserError(
            f"{owner} holds {shown(adapters[0])}, which belongs to an adapter of PEFT; merge it "
            "with model.merge_and_unload() and save_pretrained, and convert that folder"
        )
    remarks = []
    if any(COMPILED in name for name in tensors):
        remarks.append(f"{COMPILED!r} of torch.compile is removed from tensor names")
    names = {stored: stored.replace(COMPILED, "") for stored in tensors}
    prefixes = {stored: _prefix(name, roots) for stored, name in names.items()}
    found = sorted({prefix.removesuffix(usual) for prefix in prefixes.values()} - {""})
    if len(found) > 1:
        raise UserError(
            f"{owner} must hold one model, got tensors under {found[0]!r} and {found[1]!r}; save "
            "the model alone"
        )
    names = {stored: name.removeprefix(prefixes[stored]) for stored, name in names.items()}
    for prefix in found:
        wrappers = [wrapper for part, wrapper in WRAPPERS.items() if f".{part}" in f".{prefix}"]
        whose = f" of {' and '.join(wrappers)}" if wrappers else ""
        remarks.append(f"the prefix {prefix!r}{whose} is removed from tensor names")
    if len(set(names.values())) != len(names):
        prefix = ", ".join(found) or usual or COMPILED
        raise UserError(
            f"{owner} holds tensors with and without a prefix ({prefix}): save it again"
        )
    return {name: tensors[stored] for stored, name in names.items()}, remarks


def _prefix(name: str, roots: Collection[str]) -> str:
    """Returns what is before the first root of a name; nothing if there is none."""
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts) if part in roots), 0)
    return "".join(f"{part}." for part in parts[:first])
