"""Random adapters of `peft` on frozen models, saved with what they compute. Needs torch and peft.

`python -m tests.interop.peft_adapters` writes the frozen copies in tests/golden/peft, which tests
read without either. Frozen with torch 2.13.0, transformers 5.24.0 and peft 0.21.2.
"""

import json
import pathlib
import shutil

import numpy as np
import peft
import torch
import transformers

from tests.interop import transformers_stacks

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
PEFT_GOLDEN = GOLDEN / "peft"
_LORA = {"r": 2, "lora_alpha": 3}
_PROMPT = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 3}
_PREFIX = {**_PROMPT, "token_dim": 15, "num_attention_heads": 3}
T5_NAMES = ["q", "v", "o", "wi_0"]
GEMMA_NAMES = ["q_proj", "v_proj", "o_proj", "down_proj"]

# name: folder of the base, configuration
CASES = {
    "lora": ("t5_1_1", peft.LoraConfig(**_LORA)),
    "rslora_dora": (
        "t5_1_1",
        peft.LoraConfig(**_LORA, use_dora=True, use_rslora=True, target_modules=T5_NAMES),
    ),
    "adalora": (
        "t5_1_1",
        peft.AdaLoraConfig(
            init_r=3, target_r=2, lora_alpha=5, total_step=9, target_modules=T5_NAMES
        ),
    ),
    "ia3": ("t5_1_1", peft.IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])),
    "mt5_ia3": ("mt5", peft.IA3Config()),
    "umt5_dora": ("umt5", peft.LoraConfig(**_LORA, use_dora=True, target_modules=T5_NAMES)),
    "longt5_lora": ("longt5_tglobal", peft.LoraConfig(**_LORA, target_modules=T5_NAMES)),
    "t5gemma_dora": (
        "t5gemma",
        peft.LoraConfig(**_LORA, use_dora=True, target_modules=GEMMA_NAMES),
    ),
    "prefix": ("t5_1_1", peft.PrefixTuningConfig(**_PREFIX)),
    "projected_prefix_of_3": (
        "t5_1_1",
        peft.PrefixTuningConfig(
            **_PREFIX, num_layers=3, prefix_projection=True, encoder_hidden_size=7
        ),
    ),
    "umt5_prefix": ("umt5", peft.PrefixTuningConfig(**_PREFIX)),
    "prompt": ("t5_1_1", peft.PromptTuningConfig(**_PROMPT)),
    "p_tuning": ("t5_1_1", peft.PromptEncoderConfig(**_PROMPT, encoder_hidden_size=6)),
}
# Of P-tuning's networks.
NETWORKS = {
    "mlp": {"encoder_hidden_size": 6},
    "lstm": {
        "encoder_hidden_size": 6,
        "encoder_reparameterization_type": "LSTM",
        "encoder_num_layers": 2,
    },
}
FROZEN = ("rslora_dora", "ia3", "prefix", "prompt", "adalora")


def make(case: str, folder: pathlib.Path, seed: int) -> None:
    """Writes an adapter and `logits.npy`, those of its base with it on the base's inputs."""
    base, config = CASES[case]
    torch.manual_seed(seed)
    shutil.rmtree(folder, ignore_errors=True)
    model = peft.get_peft_model(load_base(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name or "ia3" in name:
                parameter.mul_(0.7 + 0.6 * torch.rand(parameter.shape))
            elif "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
        if isinstance(config, peft.AdaLoraConfig):
            remove_values(model)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    settings = {**json.loads(path.read_text()), "base_model_name_or_path": base}
    path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)
    np.save(folder / "logits.npy", logits(model, base))


def remove_values(model) -> None:
    """Removes some singular values of AdaLoRA, as its training does."""
    pattern = {}
    for name, parameter in model.base_model.model.named_parameters():
        if "lora_E" in name:
            kept = torch.rand(parameter.shape) > 0.4
            parameter.masked_fill_(~kept, 0.0)
            pattern[name] = kept.view(-1).tolist()
    model.peft_config["default"].rank_pattern = pattern


def load_base(base: str):
    """The model of a frozen folder."""
    folder = GOLDEN / "huggingface" / base
    kind = transformers.AutoModelForSeq2SeqLM
    return transformers_stacks.load(kind, folder)


def load_adapter(base: str, folder: pathlib.Path):
    """The base with the adapter in a folder, as anybody loads it."""
    return peft.PeftModel.from_pretrained(load_base(base), folder).eval()


def logits(model, base: str) -> np.ndarray:
    """The logits in double precision: what is compared with must bring no errors of its own."""
    outputs = np.load(GOLDEN / "huggingface" / base / "outputs.npz")
    tensors = {name: torch.from_numpy(outputs[name]).long() for name in outputs if "mask" in name}
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        start = model.config.decoder.bos_token_id
    targets = torch.from_numpy(outputs["targets"]).long()
    shifted = torch.nn.functional.pad(targets[:, :-1], (1, 0), value=start)
    with torch.no_grad():
        made = model.double()(
            input_ids=torch.from_numpy(outputs["inputs"]).long(),
            attention_mask=tensors["inputs_mask"],
            decoder_input_ids=shifted,
            decoder_attention_mask=tensors["targets_mask"],
        )
    return made.logits.numpy()


def network(name: str, seed: int) -> dict[str, np.ndarray]:
    """The parameters of a network of P-tuning by their names in torch, and its `vectors`."""
    torch.manual_seed(seed)
    sizes = {"token_dim": 5, "num_transformer_submodules": 1, "inference_mode": False}
    config = peft.PromptEncoderConfig(num_virtual_tokens=4, **sizes, **NETWORKS[name])
    made = peft.PromptEncoder(config).double()
    with torch.no_grad():
        vectors = made(torch.arange(4)[None])[0]
    parameters = {name: value.numpy() for name, value in made.state_dict().items()}
    return {name: value.astype(np.float32) for name, value in parameters.items()} | {
        "vectors": vectors.numpy()
    }


if __name__ == "__main__":
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for number, name in enumerate(FROZEN):
        make(name, PEFT_GOLDEN / name, seed=number)
        print(name)
    for name in NETWORKS:
        np.savez(PEFT_GOLDEN / f"p_tuning_{name}.npz", **network(name, seed=0))
