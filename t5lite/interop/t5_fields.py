"""The fields of config.json of transformers' T5 family."""

from t5lite.interop.field_groups import (
    COMMON_NEUTRAL_FIELDS,
    COMMON_REQUIRED_VALUES,
    FieldGroups,
)

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
_APPLIED_FIELDS = frozenset(
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
T5_FIELDS = FieldGroups(
    applied=_APPLIED_FIELDS,
    required=COMMON_REQUIRED_VALUES
    | {
        "is_decoder": (False, None),
        "cross_attention_hidden_size": (None,),
        "layerdrop": (0, 0.0, None),
    },
    neutral=COMMON_NEUTRAL_FIELDS.union(
        [
            "initializer_factor",
            "dropout_rate",
            "classifier_dropout",
            "n_positions",
            "output_past",
            # Every published umT5 has it: T5X's name of the layers that it is made of.
            "scalable_attention",
        ]
    ),
)
