"""Prompts and prefixes of PEFT: the one tensor that its prompt learning methods store, both ways.

Source: huggingface/peft@v0.21.2:src/peft/peft_model.py, PeftModel.get_prompt.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.lazy import LazyArray
from t5lite.interop.foreign import Foreign, StoredArray, check_array
from t5lite.interop.peft_config import PREFIX_TYPE, PROMPT_TYPE
from t5lite.models.adapted_maps import added_names, with_adapters
from t5lite.models.model import Model, check_adapters
from t5lite.models.prefix_tuning import PrefixTuning
from t5lite.models.prompt_tuning import PromptTuning, PTuning
from t5lite.models.prompts import InputPrompt
from t5lite.models.token_adapters import DECODER_ATTENTION

_TENSOR = "prompt_embeddings"
_EMBEDDING = "prompt/prompt_embedding"
_KEY, _VALUE = (f"{DECODER_ATTENTION}/prefix_{part}" for part in ("key", "value"))

PromptAdapter = PrefixTuning | PromptTuning | PTuning


def read_prompt(
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredArray],
    base: Model,
    owner: str,
) -> tuple[PromptAdapter, dict[str, LazyArray]]:
    """Returns the adapter of a file, and its parameters by t5lite's names.

    Args:
        kind: its `peft_type`.
        owner: the file, for messages.

    Raises:
        UserError: for other tensors, or a prompt that does not fit the base.
    """
    if set(tensors) != {_TENSOR}:
        raise UserError(f"{owner} must hold {_TENSOR} alone, got {sorted(tensors)}")
    stored = tensors[_TENSOR]
    length = _count(config, "num_virtual_tokens", owner)
    if kind == PREFIX_TYPE:
        return _read_prefix(config, stored, base, length, owner)
    _check_unscaled(base, owner)
    width = base.config.encoder_config().embed_dim if base.has_encoder else base.config.embed_dim
    # That of the decoder is stored too, and used by no method.
    check_array(owner, _TENSOR, (length * _stacks(config), width), stored)

    def load() -> np.ndarray:
        return stored.read(slice(0, length)).astype(np.float32)

    adapter = PromptTuning(length=length)
    check_adapters(with_adapters(base, (adapter,)))
    return adapter, {_EMBEDDING: LazyArray((length, width), np.dtype(np.float32), load)}


def _count(config: Mapping[str, Any], name: str, owner: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise UserError(f"{owner}: {name} of its configuration must be a count, got {value!r}")
    return value


def _stacks(config: Mapping[str, Any]) -> int:
    """Returns the number of stacks that PEFT stores a prompt for."""
    given = config.get("num_transformer_submodules")
    usual = 2 if config.get("task_type") == "SEQ_2_SEQ_LM" else 1
    return usual if given is None else int(given)


def _check_unscaled(model: Model, owner: str) -> None:
    if model.config.scale_embeddings:
        raise UserError(
            f"{owner}: a prompt of a model with T5Config.scale_embeddings is not converted, as "
            "transformers scales it in some of them; use PrefixTuning"
        )


def _read_prefix(
    config: Mapping[str, Any], stored: StoredArray, base: Model, length: int, owner: str
) -> tuple[PromptAdapter, dict[str, LazyArray]]:
    if not base.has_decoder:
        raise UserError(f"{owner}: a prefix of PEFT needs a --base with a decoder, got an encoder")
    own = base.config
    entries = 2 * _count(config, "num_layers", owner)
    sizes = own.kv_heads, own.head_dim
    heads = _count(config, "num_attention_heads", owner)
    if (heads, _count(config, "token_dim", owner) // heads) != sizes:
        raise UserError(
            f"{owner}: num_attention_heads and token_dim must be those of keys of --base, "
            f"{sizes[0]} and {sizes[0] * sizes[1]}, got {heads} and {config['token_dim']}"
        )
    check_array(owner, _TENSOR, (length, entries * sizes[0] * sizes[1]), stored)
    # NOTE: for two stacks PEFT repeats all entries and gives each layer four of them, of which
    # self-attention uses two: layers may share entries, and some are not used at all.
    stride = 2 * _stacks(config)
    layers = own.num_decoder_layers
    if layers * stride > entries * _stacks(config):
        raise UserError(
            f"{owner}: num_layers must be at least the decoder layers of --base ({layers}), got "
            f"{config['num_layers']}"
        )

    def load(part: int) -> np.ndarray:
        every = stored.read(...).astype(np.float32).reshape(length, entries, *sizes)
        rows = [(stride * layer + part) % entries for layer in range(layers)]
        return np.ascontiguousarray(np.moveaxis(every[:, rows], 1, 0))

    shape = (layers, length, *sizes)
    params = {
        name: LazyArray(shape, np.dtype(np.float32), functools.partial(load, part))
        for part, name in enumerate((_KEY, _VALUE))
    }
    return PrefixTuning(length=length, targets=(DECODER_ATTENTION,)), params


def write_prompt(foreign: Foreign) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """Returns the fields of adapter_config.json for a prompt or a prefix, its tensor, and remarks.

    Raises:
        UserError: for what PEFT has no counterpart of.
    """
    model = foreign.model
    (adapter,) = model.config.adapters
    stacks = 2 if model.has_encoder and model.has_decoder else 1
    common = {"num_virtual_tokens": adapter.length, "num_transformer_submodules": stacks}
    if isinstance(adapter, PrefixTuning):
        return _write_prefix(foreign, adapter, stacks, common)
    _check_unscaled(model, "--to=peft")
    vectors = _vectors(foreign)
    unused = np.zeros(((stacks - 1) * adapter.length, vectors.shape[1]), np.float32)
    settings = {"peft_type": PROMPT_TYPE, "token_dim": vectors.shape[1], **common}
    remarks = []
    if isinstance(adapter, PTuning):
        remarks.append("the vectors of P-tuning are written without its network, as a prompt")
    return settings, {_TENSOR: np.concatenate([vectors, unused])}, remarks


def _vectors(foreign: Foreign) -> np.ndarray:
    """Returns the vectors of a prompt, computed where a network does."""
    names = added_names(foreign.model)
    params = {name.removeprefix("prompt/"): foreign.params[name].load() for name in names}
    config = foreign.model.config
    prompt = InputPrompt(config.encoder_config() if config.num_encoder_layers else config)
    values: Any = prompt.apply(
        {"params": {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}},
        method=lambda module: module.vectors,
    )
    return np.asarray(values)


def _write_prefix(
    foreign: Foreign, adapter: PrefixTuning, stacks: int, common: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    model = foreign.model
    if set(added_names(model)) != {_KEY, _VALUE}:
        raise UserError(
            f"--to=peft writes a prefix of {DECODER_ATTENTION} alone, got {adapter}; PEFT has no "
            f"other: train with PrefixTuning.targets = [{DECODER_ATTENTION!r}]"
        )
    pair = [np.asarray(foreign.params[name].load(), np.float32) for name in (_KEY, _VALUE)]
    layers, length, heads, kv = pair[0].shape
    # For two stacks twice as many layers as there are, so that none shares an entry; see reading.
    entries = np.zeros((layers, 2 * stacks, length, heads, kv), np.float32)
    entries[:, :2] = np.stack(pair, axis=1)
    flat = np.moveaxis(entries.reshape(-1, length, heads, kv), 1, 0).reshape(length, -1)
    settings = {
        "peft_type": PREFIX_TYPE,
        "num_layers": stacks * layers,
        "num_attention_heads": heads,
        "token_dim": heads * kv,
        "prefix_projection": False,
        **common,
    }
    remarks = []
    if any(window is not None for window in model.config.decoder_windows):
        remarks.append("in layers with a window transformers hides the prefix from later tokens")
    return settings, {_TENSOR: np.ascontiguousarray(flat)}, remarks
