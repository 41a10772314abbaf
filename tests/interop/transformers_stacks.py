"""Random models of the families after T5 in `transformers`, saved with what they compute.

`python -m tests.interop.transformers_stacks` writes the frozen copies in tests/golden/huggingface
and tests/golden/stack_fields.json, which the tests read without torch and transformers. Frozen with
torch 2.13.0 and transformers 5.24.0.
"""

import functools
import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from transformers import masking_utils

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface"
VOCAB_SIZE = 47
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}

# Fewer heads of keys than of queries, no two sizes are the same, windows shorter than sequences.
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 22,
    "num_hidden_layers": 3,
    **IDS,
}
GEMMA2 = {
    **SIZES,
    "sliding_window": 3,
    "query_pre_attn_scalar": 7,
    # So low that they change much.
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
}
LARGER = {
    **GEMMA2,
    "hidden_size": 20,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 26,
    "num_hidden_layers": 4,
    "query_pre_attn_scalar": 9,
    "sliding_window": 2,
}
GEMMA3 = {
    **SIZES,
    "num_hidden_layers": 5,
    "sliding_window": 3,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 7,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    },
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 4,
    "patch_size": 2,
    "vision_use_head": False,
}
UNTIED = {"tie_word_embeddings": False}
CLASSES = {"id2label": {"0": "no", "1": "maybe", "2": "yes"}}
ENCODER_CLASSES = {
    "encoder": LARGER,
    "decoder": GEMMA2,
    **IDS,
    **CLASSES,
    "is_encoder_decoder": False,
}
DECODER_CLASSES = {"encoder": LARGER, "decoder": GEMMA2, **IDS, **CLASSES}

T5GEMMA2 = {
    "encoder": {
        "text_config": {
            **GEMMA3,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 4,
            "intermediate_size": 26,
            "sliding_window": 4,
        },
        "vision_config": VISION,
        "mm_tokens_per_image": 1,
        # One of the inputs.
        "eoi_token_index": 5,
    },
    "decoder": {**GEMMA3, "final_logit_softcapping": 5.0},
    "image_token_index": 46,
    **IDS,
}

# name: class, settings
CASES = {
    "t5gemma": (
        transformers.T5GemmaForConditionalGeneration,
        {"encoder": LARGER, "decoder": GEMMA2, **IDS},
    ),
    "t5gemma_untied": (
        transformers.T5GemmaForConditionalGeneration,
        {
            "encoder": {**GEMMA2, "num_hidden_layers": 2},
            "decoder": {**LARGER, "num_hidden_layers": 3, "final_logit_softcapping": None},
            **IDS,
            **UNTIED,
        },
    ),
    "t5gemma_encoder": (
        transformers.T5GemmaEncoderModel,
        {"encoder": LARGER, "decoder": GEMMA2, **IDS, "is_encoder_decoder": False},
    ),
    "t5gemma2": (transformers.T5Gemma2ForConditionalGeneration, T5GEMMA2),
    "t5gemma2_classifier": (
        transformers.T5Gemma2ForSequenceClassification,
        {**T5GEMMA2, **CLASSES},
    ),
    "t5gemma2_tagger": (transformers.T5Gemma2ForTokenClassification, {**T5GEMMA2, **CLASSES}),
    "t5gemma_classifier": (transformers.T5GemmaForSequenceClassification, ENCODER_CLASSES),
    "t5gemma_tagger": (transformers.T5GemmaForTokenClassification, ENCODER_CLASSES),
    "t5gemma_decoder_tagger": (transformers.T5GemmaForTokenClassification, DECODER_CLASSES),
    "t5gemma_decoder_classifier": (
        transformers.T5GemmaForSequenceClassification,
        DECODER_CLASSES,
    ),
    "gemma2": (transformers.Gemma2ForCausalLM, GEMMA2),
    "gemma3": (transformers.Gemma3ForCausalLM, GEMMA3),
    "gemma3_images": (
        transformers.Gemma3ForConditionalGeneration,
        {
            "text_config": GEMMA3,
            "vision_config": VISION,
            "mm_tokens_per_image": 1,
            "image_token_index": 46,
            "eos_token_id": 1,
        },
    ),
    "llama": (
        transformers.LlamaForCausalLM,
        {**SIZES, "rope_parameters": LLAMA3, "rms_norm_eps": 1e-5},
    ),
    "llama_tied": (transformers.LlamaForCausalLM, {**SIZES, "tie_word_embeddings": True}),
    "qwen3": (
        transformers.Qwen3ForCausalLM,
        {
            **SIZES,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 2,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_untied": (transformers.Qwen3ForCausalLM, {**SIZES, **UNTIED}),
}

# Of these there are frozen copies.
FROZEN = ("gemma2", "gemma3", "llama", "qwen3", "t5gemma", "t5gemma2", "t5gemma_encoder")


def make(case: str, folder: pathlib.Path, seed: int) -> None:
    """Writes a checkpoint, `outputs.npz` and the gradients of the loss as a checkpoint."""
    kind, settings = CASES[case]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = kind(kind.config_class(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Gemma adds 1 to the scales of norms.
            usual = 0.0 if "Gemma" in kind.__name__ else 1.0
            parameter.copy_(_random(name, parameter.shape, usual))
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # In double precision: what is compared with must not bring errors of its own.
    model = load(kind, folder).double()
    classes = {"Sequence": "example", "Token": "token"} if hasattr(model, "score") else {}
    has_decoder = hasattr(getattr(model, "model", None), "decoder")
    batch = random_batch(
        rng,
        has_targets=has_decoder and not classes,
        classes=next((what for part, what in classes.items() if part in kind.__name__), None),
        # transformers shifts tokens over the padding before them.
        pads_left=not (has_decoder and classes),
    )
    np.savez_compressed(folder / "outputs.npz", **batch, **compute(model, batch))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0 * parameter if parameter.grad is None else parameter.grad)
    model.float().save_pretrained(folder / "gradients")
    (folder / "gradients" / "generation_config.json").unlink(missing_ok=True)


def load(kind, folder):
    """The model in a folder, as anybody loads it."""
    # In float64 the smallest number is not finite in the softmax, which is in float32.
    masks = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    if not isinstance(masks["eager"], functools.partial):
        masks.register("eager", functools.partial(_mask_in_float32, masks["eager"]))
    return kind.from_pretrained(folder, attn_implementation="eager").eval()


def _mask_in_float32(mask, *args, **kwargs):
    return mask(*args, **{**kwargs, "dtype": torch.float32})


def _random(name: str, shape: torch.Size, usual_scale: float) -> torch.Tensor:
    if "norm" in name and "vision" not in name:
        return usual_scale - 0.5 + torch.rand(shape)
    return (1.0 if "embed_tokens" in name else 0.4) * torch.randn(shape)


def random_batch(
    rng, *, has_targets: bool, classes: str | None = None, pads_left: bool = True
) -> dict[str, np.ndarray]:
    """Four rows: without padding, and with padding on the right, on the left and on both sides.

    Args:
        classes: what has one of three classes, an "example" or a "token"; None for targets.
    """
    rows = [(0, 13), (0, 9), (6, 13), (3, 11)]
    batch = {"inputs_mask": _rows(13, rows if pads_left else [(0, stop) for _, stop in rows])}
    if has_targets:
        batch["targets_mask"] = _rows(7, [(0, 4), (0, 7), (2, 7), (1, 6)])
    inputs = rng.integers(3, VOCAB_SIZE, batch["inputs_mask"].shape, np.int32)
    # A token that T5Gemma 2 reads in a way of its own.
    inputs[:, 7] = 5
    # Padding that a token follows is read, but transformers gives its embedding no gradient.
    shape = batch["targets_mask" if has_targets else "inputs_mask"].shape
    targets = rng.integers(3, VOCAB_SIZE, shape, np.int32)
    targets[:, 2] = 5
    # 46 stands for an image.
    inputs, targets = inputs.clip(max=45), targets.clip(max=45)
    batch |= {"inputs": inputs * batch["inputs_mask"], "targets": targets}
    if classes == "example":
        del batch["targets"]
        batch["labels"] = rng.integers(0, 3, 4, np.int32)
    elif classes == "token":
        batch["targets"] = rng.integers(0, 3, shape, np.int32)
    return batch


def _rows(length: int, spans) -> np.ndarray:
    columns = np.arange(length)
    return np.stack([(first <= columns) & (columns < stop) for first, stop in spans]).astype(
        np.int32
    )


def compute(model, batch) -> dict[str, np.ndarray]:
    """Logits, encoder states and mean loss; the gradients are left in the parameters."""
    tensors = {name: torch.from_numpy(array).long() for name, array in batch.items()}
    arguments = {"input_ids": tensors["inputs"], "attention_mask": tensors["inputs_mask"]}
    outputs = {}
    is_encoder = hasattr(model, "encoder")
    if "targets_mask" in batch:
        shifted = torch.nn.functional.pad(tensors["targets"][:, :-1], (1, 0), value=2)
        # T5Gemma 2 adds encoder states without positions: it sees where the positions begin.
        positions = (tensors["targets_mask"].cumsum(1) - 1).clamp(min=0)
        made = model(
            **arguments,
            decoder_input_ids=shifted,
            decoder_position_ids=positions,
            decoder_attention_mask=tensors["targets_mask"],
            use_cache=False,
        )
        outputs["encoded"] = made.encoder_last_hidden_state
    elif is_encoder:
        outputs["encoded"] = model(**arguments).last_hidden_state
        # Squares, since terms that cancel would leave nothing to be relative to.
        loss = (outputs["encoded"].sin().square() * tensors["inputs_mask"][..., None]).sum()
    elif hasattr(model, "score"):
        made = model(**arguments)
    else:
        made = model(**arguments, use_cache=False)
    if "labels" in batch:
        outputs["logits"] = made.logits
        if hasattr(model.model, "decoder"):
            # Such a class depends on the padding of a batch: each row is one.
            rows = zip(tensors["inputs"], tensors["inputs_mask"] > 0, strict=True)
            outputs["logits"] = torch.cat([model(row[mask][None]).logits for row, mask in rows])
        loss = torch.nn.functional.cross_entropy(outputs["logits"], tensors["labels"])
    elif not is_encoder:
        outputs["logits"] = made.logits
        mask = tensors["targets_mask" if "targets_mask" in batch else "inputs_mask"] > 0
        loss = torch.nn.functional.cross_entropy(made.logits[mask], tensors["targets"][mask])
    outputs["loss"] = loss
    loss.backward()
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}


def class_fields() -> dict[str, dict]:
    """The fields of the configuration classes and their values without a file, by `model_type`.

    Without those of images, and without the kinds of layers, which are a list for each layer.
    """
    kinds = {kind.config_class for kind, _ in CASES.values()} | {transformers.Gemma3TextConfig}
    return {kind.model_type: _text_fields(kind().to_dict()) for kind in kinds}


def _text_fields(settings: dict) -> dict:
    shown = {k: v for k, v in sorted(settings.items()) if k != "vision_config"}
    shown.pop("transformers_version", None)
    inner = {k: _text_fields(v) for k, v in shown.items() if isinstance(v, dict)}
    return {**shown, **inner, **dict.fromkeys({"layer_types"} & shown.keys())}


if __name__ == "__main__":
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    frozen = {"transformers": transformers.__version__, "fields": class_fields()}
    (GOLDEN.parent / "stack_fields.json").write_text(json.dumps(frozen, indent=1, sort_keys=True))
    for case in sys.argv[1:] or FROZEN:
        make(case, GOLDEN / case, seed=sorted(CASES).index(case))
        print(case)
