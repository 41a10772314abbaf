"""Prefixes that wrappers put before the names of a model's tensors."""

from collections.abc import Mapping

from t5lite.core.errors import UserError
from t5lite.interop.foreign import StoredArray

# torch.compile, DistributedDataParallel, PEFT.
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "base_model.model.": "PEFT",
}
ADAPTER_PARTS = ("lora_", "ia3_l", "prompt_embeddings", ".base_layer.", "adapter_")


def without_wrappers(
    tensors: Mapping[str, StoredArray], owner: str
) -> tuple[dict[str, StoredArray], list[str]]:
    """Returns the tensors without the prefixes of wrappers, and a remark on each that was removed.

    Raises:
        UserError: if the tensors of an adapter are among them, or two get the same name.
    """
    if adapters := [name for name in tensors if any(part in name for part in ADAPTER_PARTS)]:
        raise UserError(
            f"{owner} holds {adapters[0]}, which belongs to an adapter of PEFT; merge it with "
            "model.merge_and_unload() and save_pretrained, and convert that folder"
        )
    remarks = []
    names = {name: name for name in tensors}
    is_changed = True
    while is_changed:
        is_changed = False
        for prefix, wrapper in WRAPPERS.items():
            if not any(name.startswith(prefix) for name in names.values()):
                continue
            names = {stored: name.removeprefix(prefix) for stored, name in names.items()}
            remarks.append(f"the prefix {prefix!r} of {wrapper} is removed from tensor names")
            is_changed = True
    # A part of a model that was compiled has the prefix inside the name.
    if any("._orig_mod." in name for name in names.values()):
        names = {stored: name.replace("._orig_mod.", ".") for stored, name in names.items()}
        remarks.append("'_orig_mod.' of torch.compile is removed from tensor names")
    if len(set(names.values())) != len(names):
        raise UserError(f"{owner} holds tensors with and without a wrapper's prefix: save it again")
    return {name: tensors[stored] for stored, name in names.items()}, remarks
