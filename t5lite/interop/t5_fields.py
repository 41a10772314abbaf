"""The fields of config.json of transformers' T5 family, in groups by what t5lite does with them."""

from collections.abc import Mapping
from typing import Any

from t5lite.core.errors import UserError

# The values that the classes take if the file has none.
DEFAULT_NUMBERS: dict[str, int | float] = {
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "local_radius": 127,
    "global_block_size": 16,
}
SIZE_FIELDS = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers")
# Other names under which transformers reads a size.
OTHER_SIZE_NAMES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
APPLIED_FIELDS = frozenset(
    [
        "architectures",
        "model_type",
        "num_decoder_layers",
        "encoder_attention_type",
        "feed_forward_proj",
        "dense_act_fn",
        "is_gated_act",
        "tie_word_embeddings",
        "scale_decoder_outputs",
        "pad_token_id",
        "eos_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
    ]
).union(SIZE_FIELDS, DEFAULT_NUMBERS, OTHER_SIZE_NAMES)
# Fields that must have one of these values: another one changes the arithmetic.
REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
    "layerdrop": (0, 0.0, None),
}
# Fields without an effect on logits and loss, training choices (such as dropout), and those of
# generation, which `generation_settings` reads.
NEUTRAL_FIELDS = frozenset(
    [
        "_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "torchscript",
        "architectures",
        "model_type",
        "is_encoder_decoder",
        "use_cache",
        "initializer_factor",
        "dropout_rate",
        "classifier_dropout",
        "gradient_checkpointing",
        "problem_type",
        "id2label",
        "label2id",
        "num_labels",
        "n_positions",
        "output_past",
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
    ]
)
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


def unknown_fields(settings: Mapping[str, Any]) -> list[str]:
    """Returns the fields of a config.json that are in no group."""
    known = APPLIED_FIELDS | NEUTRAL_FIELDS | GENERATION_FIELDS | REQUIRED_VALUES.keys()
    return sorted(settings.keys() - known)


def check_required(settings: Mapping[str, Any], owner: str) -> None:
    """Raises a UserError for a field whose value changes the arithmetic."""
    for name, allowed in REQUIRED_VALUES.items():
        if name in settings and settings[name] not in allowed:
            raise UserError(
                f"{owner}: {name} must be {allowed[0]!r}, got {settings[name]!r}; t5lite has no "
                "counterpart of it"
            )
