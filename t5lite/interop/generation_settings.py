"""Special ids and settings of generation: generation_config.json and its fields in config.json."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.interop.field_groups import GENERATION_FIELDS
from t5lite.interop.tensor_files import read_json

GENERATION_FILE = "generation_config.json"
# The version of transformers that exports are tested with.
TRANSFORMERS_VERSION = "5.24.0"
# T5 pads with 0, ends with 1 and starts the decoder with padding.
T5_IDS: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1}
_ID_FIELDS = ("pad_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id")
# Fields of generation_config.json that do not change what is generated.
_NEUTRAL_FIELDS = frozenset(
    [
        "transformers_version",
        "_from_model_config",
        "bos_token_id",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "return_legacy_cache",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "compile_config",
        "disable_compile",
        "low_memory",
        "prefill_chunk_size",
        "continuous_batching_config",
        "is_assistant",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "use_mtp",
    ]
)
# Settings of generate that have no effect at these values.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "early_stopping": (False,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0.0,),
    "temperature": (1.0,),
    "top_k": (50,),
    "top_p": (1.0,),
    "typical_p": (1.0,),
    "repetition_penalty": (1.0,),
    "length_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "max_length": (20,),
    "remove_invalid_values": (False,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "renormalize_logits": (False,),
    "token_healing": (False,),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """The special ids of a folder.

    Args:
        start: the token before the first target.
        special: the ids that a vocabulary carries.
    """

    start: int = 0
    special: SpecialTokens = SpecialTokens()


def read_special_ids(
    folder: pathlib.Path, settings: Mapping[str, Any], usual: Mapping[str, Any]
) -> tuple[SpecialIds, list[str]]:
    """Returns the special ids of config.json and generation_config.json, and remarks.

    `eos_token_id` of generation_config.json takes precedence, as in `generate`; the other ids must
    agree. Padding without an id is the first end, and a decoder without a start starts with
    padding.

    Args:
        usual: the ids where the files have none.

    Raises:
        UserError: if an id is not one, is outside the vocabulary, or the two files disagree.
    """
    path = folder / GENERATION_FILE
    generation = read_json(path) if path.is_file() else {}
    ids: dict[str, Any] = {"pad_token_id": None, "eos_token_id": None, **usual}
    for name in _ID_FIELDS:
        values = [f[name] for f in (settings, generation) if f.get(name) is not None]
        if not values:
            continue
        if name != "eos_token_id" and len(values) == 2 and values[0] != values[1]:
            raise UserError(
                f"{folder}: {name} must be the same in config.json and {GENERATION_FILE}, got "
                f"{values[0]!r} and {values[1]!r}"
            )
        ids[name] = values[-1]
    size = settings.get("vocab_size", 0)
    size = size if type(size) is int else 0
    ends = ids["eos_token_id"] if isinstance(ids["eos_token_id"], list) else [ids["eos_token_id"]]
    ids |= {f"eos_token_id[{i}]": end for i, end in enumerate(ends)}
    del ids["eos_token_id"]
    if ids["pad_token_id"] is None and ends:
        ids["pad_token_id"] = ends[0]
    for name, value in ids.items():
        if type(value) is not int or not 0 <= value < size:
            raise UserError(
                f"{folder}: {name} must be a token id under vocab_size ({size}), got {value!r}"
            )
    special = SpecialTokens(
        pad_id=ids["pad_token_id"],
        eos_ids=tuple(ends),
        forced_bos_id=ids.get("forced_bos_token_id"),
    )
    start = ids.get("decoder_start_token_id", ids["pad_token_id"])
    remarks = _remarks(settings, generation)
    of_config = settings.get("eos_token_id")
    listed = of_config if isinstance(of_config, list) else [of_config]
    for unused in (end for end in listed if end not in (None, *ends)):
        remarks.append(
            f"eos_token_id {unused!r:.80} of config.json ends no text: {GENERATION_FILE} has "
            f"{', '.join(map(str, ends))}, which generate uses; edit it if that is wrong"
        )
    return SpecialIds(start=start, special=special), remarks


def _remarks(settings: Mapping[str, Any], generation: Mapping[str, Any]) -> list[str]:
    asked = {
        name: value
        for name, value in {**settings, **generation}.items()
        if name in (GENERATION_FIELDS | generation.keys()) - _NEUTRAL_FIELDS - set(_ID_FIELDS)
        and value is not None
        and value not in _NEUTRAL_VALUES.get(name, ())
        and value != []
    }
    if not asked:
        return []
    listed = ", ".join(f"{name}={value!r:.80}" for name, value in sorted(asked.items()))
    remark = f"defaults for generate are not converted: {listed}; bind what you need of Decoding"
    return [remark]


def id_settings(ids: SpecialIds) -> dict[str, Any]:
    """Returns the special ids as fields of config.json and generation_config.json."""
    ends = list(ids.special.eos_ids)
    fields: dict[str, Any] = {
        "decoder_start_token_id": ids.start,
        "pad_token_id": ids.special.pad_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
    }
    return fields


def bos_id_settings(ids: SpecialIds) -> dict[str, Any]:
    """Returns the special ids as fields of families whose sequences start with `bos_token_id`."""
    fields = id_settings(ids)
    return {"bos_token_id": fields.pop("decoder_start_token_id"), **fields}


def generation_config(ids: SpecialIds, *, max_target_tokens: int) -> dict[str, Any]:
    """Returns generation_config.json without special ids. `max_length` counts the start token."""
    fields: dict[str, Any] = {"max_length": 1 + max_target_tokens}
    if ids.special.forced_bos_id is not None:
        fields["forced_bos_token_id"] = ids.special.forced_bos_id
    return {**fields, "transformers_version": TRANSFORMERS_VERSION}
