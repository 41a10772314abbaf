"""The fields of a foreign config.json, in groups by what t5lite does with them.

A field in none of the groups of its family is rejected by name, because its arithmetic is unknown.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from t5lite.core.errors import UserError, shown

# Fields of every configuration of transformers without an effect on logits and loss, and of the
# programs that write such files.
COMMON_NEUTRAL_FIELDS = frozenset(
    [
        "_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "torchscript",
        "is_encoder_decoder",
        "use_cache",
        "gradient_checkpointing",
        "problem_type",
        "id2label",
        "label2id",
        "num_labels",
        "tokenizer_class",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "return_dict_in_generate",
        "output_scores",
        "use_bfloat16",
        "tf_legacy_loss",
        "chunk_size_feed_forward",
        "finetuning_task",
        "task_specific_params",
        "prefix",
        "bos_token_id",
        "sep_token_id",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "_commit_hash",
        "_output_attentions",
        "auto_map",
        "transformers_weights",
        # Of earlier versions of transformers.
        "_num_labels",
        "xla_device",
        # Notes of other programs.
        "transformers.js_config",
        "unsloth_fixed",
        "unsloth_version",
    ]
)
# Defaults for generate, which `generation_settings` reads.
GENERATION_FIELDS = frozenset(
    [
        "max_length",
        "max_new_tokens",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
    ]
)
# Values of fields that every family needs: others change the arithmetic.
COMMON_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldGroups:
    """The fields of a family's configuration.

    Args:
        applied: fields that the model is made from, those of `parts` excepted.
        required: fields that must have one of these values, because another one changes the
            arithmetic; the first is named in messages.
        neutral: fields without an effect on logits and loss, and training choices.
        generation: defaults for generate.
        parts: fields that hold a configuration of their own, with its groups.
    """

    applied: frozenset[str]
    required: Mapping[str, tuple[Any, ...]] = dataclasses.field(
        default_factory=COMMON_REQUIRED_VALUES.copy
    )
    neutral: frozenset[str] = COMMON_NEUTRAL_FIELDS
    generation: frozenset[str] = GENERATION_FIELDS
    parts: Mapping[str, "FieldGroups"] = dataclasses.field(default_factory=dict)

    @property
    def known(self) -> frozenset[str]:
        """All fields in a group."""
        return self.applied.union(self.required, self.neutral, self.generation, self.parts)


def unknown_fields(settings: Mapping[str, Any], groups: FieldGroups) -> dict[str, Any]:
    """Returns the fields in no group by path, such as `decoder.name`. null is the same as no field.

    >>> unknown_fields({"a": 1, "b": 2, "c": None}, FieldGroups(applied=frozenset({"a"})))
    {'b': 2}
    """
    unknown: dict[str, Any] = {}
    for path, part, group in _parts(settings, groups):
        names = sorted(part.keys() - group.known)
        unknown |= {path + name: part[name] for name in names if part[name] is not None}
    return unknown


def _parts(
    settings: Mapping[str, Any], groups: FieldGroups, path: str = ""
) -> Iterator[tuple[str, Mapping[str, Any], FieldGroups]]:
    """Yields a configuration and those inside of it, each with the path before its fields."""
    yield path, settings, groups
    for name, group in groups.parts.items():
        if isinstance(part := settings.get(name), Mapping):
            yield from _parts(part, group, f"{path}{name}.")


def check_known(
    settings: Mapping[str, Any], groups: FieldGroups, ignored: Collection[str], owner: str
) -> None:
    """Checks that every field is in a group, and every part a configuration.

    Args:
        ignored: paths of fields in no group that are allowed.

    Raises:
        UserError: for a field that is in no group, one of `ignored` that needs no permission, or a
            part that holds something else.
    """
    unknown = unknown_fields(settings, groups)
    if needless := sorted(set(ignored).difference(unknown)):
        why = "which it does not have" if _at(settings, needless[0]) is None else "which is known"
        raise UserError(
            f"convert.ignore_fields must name unknown fields of {owner}, got {needless[0]!r}, {why}"
        )
    if rejected := {name: value for name, value in unknown.items() if name not in ignored}:
        listed = ", ".join(f"{shown(n)}={value!r:.40}" for n, value in list(rejected.items())[:5])
        more = f" and {len(rejected) - 5} more" if len(rejected) > 5 else ""
        raise UserError(
            f"{owner} must hold only fields that t5lite knows, because others may change the "
            f"model, got {listed}{more}; name those that do not in convert.ignore_fields of t5lite "
            "convert"
        )
    for path, part, group in _parts(settings, groups):
        for name in group.parts:
            if not isinstance(part.get(name), Mapping | None):
                got = f"{part[name]!r:.80}"
                raise UserError(f"{owner}: {path}{name} must hold a configuration, got {got}")


def check_required(settings: Mapping[str, Any], groups: FieldGroups, owner: str) -> None:
    """Raises a UserError for a field whose value changes the arithmetic."""
    for path, part, group in _parts(settings, groups):
        for name, allowed in group.required.items():
            if name in part and part[name] not in allowed:
                raise UserError(
                    f"{owner}: {path}{name} must be {allowed[0]!r}, got {part[name]!r:.80}; t5lite "
                    "has no counterpart of it"
                )


def _at(settings: Any, path: str) -> Any:
    """Returns the value at a path; None if there is none."""
    for name in path.split("."):
        if not isinstance(settings, Mapping):
            return None
        settings = settings.get(name)
    return settings
