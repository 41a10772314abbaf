"""Random BERTs and ModernBERTs of `transformers`, saved with what they compute.

`python -m tests.interop.transformers_encoders` writes the frozen copies in
tests/golden/huggingface, which the tests read without either. Frozen with torch 2.13.0 and
transformers 5.24.0.
"""

import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers

from tests.interop.transformers_stacks import GOLDEN, VOCAB_SIZE, load

LENGTH = 13

# No two sizes are the same; windows are shorter than sequences.
BERT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 15,
    "num_attention_heads": 3,
    "intermediate_size": 22,
    "num_hidden_layers": 2,
    "max_position_embeddings": 16,
    "type_vocab_size": 3,
}
# Layers: full, window, window, full, window.
MODERNBERT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 18,
    "num_attention_heads": 3,
    "intermediate_size": 22,
    "num_hidden_layers": 5,
    "local_attention": 5,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    },
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "sep_token_id": 1,
}
BIASES = {"attention_bias": True, "mlp_bias": True, "classifier_bias": True, "norm_bias": True}
OTHER_LAYERS = {
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2
}
UNTIED = {"tie_word_embeddings": False}
LABELS = {"num_labels": 4, "id2label": {"0": "no", "1": "maybe", "2": "yes", "3": "other"}}

# name: class, settings
CASES = {
    "bert": (transformers.BertForMaskedLM, BERT),
    "bert_untied": (transformers.BertForMaskedLM, {**BERT, **UNTIED, "hidden_act": "gelu_new"}),
    "bert_model": (transformers.BertModel, {**BERT, "layer_norm_eps": 1e-3}),
    "bert_answers": (transformers.BertForQuestionAnswering, BERT),
    "bert_tagger": (transformers.BertForTokenClassification, {**BERT, **LABELS}),
    "modernbert": (transformers.ModernBertForMaskedLM, MODERNBERT),
    "modernbert_biases": (
        transformers.ModernBertForMaskedLM,
        {**MODERNBERT, **BIASES, **OTHER_LAYERS, **UNTIED, "decoder_bias": False},
    ),
    "modernbert_model": (
        transformers.ModernBertModel,
        {**MODERNBERT, "num_hidden_layers": 1, "norm_eps": 1e-3},
    ),
    "modernbert_answers": (transformers.ModernBertForQuestionAnswering, MODERNBERT),
    "modernbert_tagger": (
        transformers.ModernBertForTokenClassification,
        {**MODERNBERT, "num_labels": 4, "num_hidden_layers": 3},
    ),
}


def make(case: str, folder: pathlib.Path, seed: int) -> None:
    """Writes a checkpoint, `outputs.npz` and the gradients of the loss as a checkpoint."""
    kind, settings = CASES[case]
    torch.manual_seed(seed)
    model = kind(kind.config_class(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(name, parameter.shape))
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    # In double precision: what is compared with must not bring errors of its own.
    model = load(kind, folder).double()
    types = settings.get("type_vocab_size", 0)
    has_spans = "Answering" in kind.__name__
    labels = 2 if has_spans else settings.get("num_labels", VOCAB_SIZE)
    batch = random_batch(np.random.default_rng(seed), types=types, labels=labels)
    np.savez_compressed(folder / "outputs.npz", **batch, **compute(model, batch))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0 * parameter if parameter.grad is None else parameter.grad)
    model.float().save_pretrained(folder / "gradients")


def _random(name: str, shape: torch.Size) -> torch.Tensor:
    if "norm" in name.lower() and "bias" not in name:
        return 0.5 + torch.rand(shape)
    return (1.0 if "embeddings" in name else 0.4) * torch.randn(shape)


def random_batch(rng, *, types: int, labels: int) -> dict[str, np.ndarray]:
    """Rows that end in padding, the first one excepted.

    With token types positions are learned, and transformers counts padding before the first token.
    Other rows also begin with padding.
    """
    spans = [(0, LENGTH), (0, 9), (0, 3)] if types else [(0, LENGTH), (0, 9), (6, LENGTH), (3, 11)]
    columns = np.arange(LENGTH)
    mask = np.stack([(first <= columns) & (columns < stop) for first, stop in spans])
    mask = mask.astype(np.int32)
    batch = {
        "inputs": rng.integers(3, VOCAB_SIZE, mask.shape, np.int32) * mask,
        "inputs_mask": mask,
        "targets": rng.integers(0, labels, mask.shape, np.int32) * mask,
    }
    if types:
        batch["token_types"] = rng.integers(0, types, mask.shape, np.int32) * mask
    return batch


def compute(model, batch) -> dict[str, np.ndarray]:
    """Logits, states and mean loss; the gradients are left in the parameters."""
    tensors = {name: torch.from_numpy(array).long() for name, array in batch.items()}
    arguments = {"input_ids": tensors["inputs"], "attention_mask": tensors["inputs_mask"]}
    if "token_types" in tensors:
        arguments["token_type_ids"] = tensors["token_types"]
    body = getattr(model, model.base_model_prefix, model)
    outputs = {"encoded": body(**arguments).last_hidden_state}
    if body is model:
        # Squares, since terms that cancel would leave nothing to be relative to.
        loss = (outputs["encoded"].sin().square() * tensors["inputs_mask"][..., None]).sum()
    else:
        labels = tensors["targets"].masked_fill(tensors["inputs_mask"] == 0, -100)
        if "Answering" in type(model).__name__:
            made = model(**arguments)
            # As if both were classes, so that each logit has a part in the loss.
            outputs["logits"] = torch.stack([made.start_logits, made.end_logits], -1)
            loss = torch.nn.functional.cross_entropy(outputs["logits"].mT, labels)
        else:
            made = model(**arguments, labels=labels)
            loss = made.loss
            outputs["logits"] = made.logits
    outputs["loss"] = loss
    loss.backward()
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}


if __name__ == "__main__":
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for case in sys.argv[1:] or CASES:
        make(case, GOLDEN / case, seed=sorted(CASES).index(case))
        print(case)
