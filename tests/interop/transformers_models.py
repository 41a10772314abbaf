"""Random models of `transformers`, saved with what they compute. Needs torch and transformers.

`python -m tests.interop.transformers_models` writes the frozen copies in tests/golden/huggingface,
which the tests read without either. Frozen with torch 2.13.0 and transformers 5.23.0.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    LongT5ForConditionalGeneration,
    MT5EncoderModel,
    MT5ForConditionalGeneration,
    MT5ForSequenceClassification,
    MT5ForTokenClassification,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    T5ForTokenClassification,
    UMT5EncoderModel,
    UMT5ForConditionalGeneration,
    UMT5ForSequenceClassification,
    UMT5ForTokenClassification,
)

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface"

# Heads do not divide the width, no two sizes are the same.
SIZES = {
    "vocab_size": 47,
    "d_model": 14,
    "num_heads": 3,
    "d_kv": 5,
    "d_ff": 22,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
UNEQUAL = {**GATED, "num_layers": 3, "num_decoder_layers": 2}
LABELS = {"id2label": {"0": "no", "1": "maybe", "2": "yes"}, "problem_type": None}
LONG = {**GATED, "local_radius": 2, "global_block_size": 4}

# name: class, settings, whether logits have a matrix of their own
CASES = {
    "t5_1_0": (T5ForConditionalGeneration, {"feed_forward_proj": "relu"}, False),
    "t5_1_1": (T5ForConditionalGeneration, GATED, True),
    "t5_tied_unscaled": (T5ForConditionalGeneration, GATED, False),
    "byt5": (T5ForConditionalGeneration, {**GATED, "num_layers": 3, "num_decoder_layers": 1}, True),
    "ul2": (T5ForConditionalGeneration, {"feed_forward_proj": "gated-silu"}, False),
    "mt5": (MT5ForConditionalGeneration, GATED, True),
    "umt5": (UMT5ForConditionalGeneration, {"feed_forward_proj": "gated-gelu"}, False),
    "longt5_local": (
        LongT5ForConditionalGeneration,
        {**LONG, "encoder_attention_type": "local"},
        True,
    ),
    "longt5_tglobal": (
        LongT5ForConditionalGeneration,
        {**LONG, "encoder_attention_type": "transient-global", "num_layers": 3},
        True,
    ),
    "encoder": (T5EncoderModel, GATED, False),
    "tagger": (T5ForTokenClassification, {**GATED, "num_labels": 4}, False),
    "classifier": (T5ForSequenceClassification, {**UNEQUAL, **LABELS}, False),
    "mt5_classifier": (MT5ForSequenceClassification, {**UNEQUAL, "num_labels": 2}, False),
    "mt5_encoder": (MT5EncoderModel, GATED, False),
    "mt5_tagger": (MT5ForTokenClassification, {**GATED, **LABELS}, False),
    "umt5_classifier": (UMT5ForSequenceClassification, {**UNEQUAL, **LABELS}, False),
    "umt5_encoder": (UMT5EncoderModel, GATED, False),
    "umt5_tagger": (UMT5ForTokenClassification, {**GATED, "num_labels": 4}, False),
}
# The cases without a frozen copy, whose arithmetic is that of others.
NOT_FROZEN = ("mt5_classifier", "mt5_encoder", "mt5_tagger", "umt5_encoder", "umt5_tagger")


def make(case: str, folder: pathlib.Path, seed: int) -> None:
    """Writes a checkpoint, `outputs.npz` and the gradients of the loss as a checkpoint."""
    kind, settings, has_head = CASES[case]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = kind.config_class(**{**SIZES, **settings})
    state = kind(config).state_dict()
    keep = {k: v for k, v in state.items() if "embed_tokens" not in k}
    if not has_head:
        keep.pop("lm_head.weight", None)
    random = {name: _random(name, tensor) for name, tensor in keep.items()}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # As the settings were given: transformers 5 saves other values than it was given.
    written = {"model_type": config.model_type, **SIZES, **settings}
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")
    save_file(random, folder / "model.safetensors", metadata={"format": "pt"})
    model = load(kind, folder)
    # In double precision: what is compared with must not bring errors of its own.
    model = model.double()
    batch = random_batch(
        rng,
        has_decoder=hasattr(model, "decoder"),
        labels=config.num_labels,
        per_example=hasattr(model, "classification_head"),
    )
    outputs, grads = compute(model, batch)
    np.savez_compressed(folder / "outputs.npz", **batch, **outputs)
    (folder / "gradients").mkdir()
    (folder / "gradients" / "config.json").write_text((folder / "config.json").read_text())
    save_file(grads, folder / "gradients" / "model.safetensors", metadata={"format": "pt"})


def load(kind, folder):
    """The model in a folder, as anybody loads it."""
    return kind.from_pretrained(folder, attn_implementation="eager").eval()


def _random(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if "layer_norm" in name:
        return 0.5 + torch.rand(tensor.shape)
    # At 0.4 attention is so sharp that float32, torch's too, is 1e-5 off float64 for some seeds.
    scale = 1.0 if "bias" in name or "shared" in name else 0.3
    return scale * torch.randn(tensor.shape)


def random_batch(
    rng, *, has_decoder: bool, labels: int, per_example: bool = False
) -> dict[str, np.ndarray]:
    """Three rows that end in padding, the first one excepted."""
    inputs, targets = 13, 7
    mask = (np.arange(inputs) < np.array([[inputs], [9], [3]])).astype(np.int32)
    batch = {
        "inputs": rng.integers(2, SIZES["vocab_size"], mask.shape).astype(np.int32) * mask,
        "inputs_mask": mask,
    }
    if has_decoder:
        shown = (np.arange(targets) < np.array([[4], [targets], [5]])).astype(np.int32)
        wanted = rng.integers(2, SIZES["vocab_size"], shown.shape).astype(np.int32) * shown
        batch |= {"targets": wanted, "targets_mask": shown}
    elif per_example:
        # Rows end with one end of sequence each.
        batch["inputs"][np.arange(3), mask.sum(1) - 1] = 1
        batch["labels"] = rng.integers(0, labels, 3).astype(np.int32)
    else:
        batch |= {"targets": rng.integers(0, labels, mask.shape).astype(np.int32) * mask}
    return batch


def compute(model, batch) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """Logits, encoder states and mean loss, and the gradient of every parameter."""
    tensors = {name: torch.from_numpy(array).long() for name, array in batch.items()}
    arguments = {"input_ids": tensors["inputs"], "attention_mask": tensors["inputs_mask"]}
    outputs = {}
    if "targets_mask" in batch:
        labels = tensors["targets"].masked_fill(tensors["targets_mask"] == 0, -100)
        shifted = torch.nn.functional.pad(tensors["targets"][:, :-1], (1, 0))
        made = model(
            **arguments,
            decoder_input_ids=shifted,
            decoder_attention_mask=tensors["targets_mask"],
            labels=labels,
        )
        loss, outputs["encoded"] = made.loss, made.encoder_last_hidden_state
    elif "labels" in batch:
        made = model(**arguments, labels=tensors["labels"])
        loss, outputs["encoded"] = made.loss, made.encoder_last_hidden_state
    elif hasattr(model, "classifier"):
        labels = tensors["targets"].masked_fill(tensors["inputs_mask"] == 0, -100)
        made = model(**arguments, labels=labels)
        loss = made.loss
    else:
        outputs["encoded"] = model(**arguments).last_hidden_state
        # Squares, since terms that cancel would leave nothing to be relative to.
        loss = (outputs["encoded"].sin().square() * tensors["inputs_mask"][..., None]).sum()
    outputs["loss"] = loss
    if any(hasattr(model, name) for name in ("lm_head", "classifier", "classification_head")):
        outputs["logits"] = made.logits
    loss.backward()
    named = model.named_parameters()
    grads = {n: p.grad.float() for n, p in named if p.grad is not None and "embed_tokens" not in n}
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}, grads


if __name__ == "__main__":
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for case in sys.argv[1:] or [case for case in CASES if case not in NOT_FROZEN]:
        make(case, GOLDEN / case, seed=sorted(CASES).index(case))
        print(case)
