"""Numbers in words and in digits, and small models of each class that are trained on them."""

import json
import pathlib
import random
import shutil
import sys

import flax.traverse_util
import jax
import numpy as np

from t5lite import configurables
from t5lite.cli.main import main
from t5lite.cli.run_files import VOCABULARY_COPY
from t5lite.core.lazy import LazyArray
from t5lite.models.description import describe
from t5lite.models.model import parameters
from t5lite.training.lazy_checkpoints import write_lazily

RUN_FILE = "experiments/clients/run.gin"
# The others have random parameters.
TRAINED = ("t5_tied",)

UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
TAGS = ("unit", "teen", "tens", "other")
HELD_OUT = 100

# Sizes of the models whose files in gin/models are those of published ones.
_SIZES = {
    "vocab_size": 136,
    "embed_dim": 64,
    "num_heads": 4,
    "head_dim": 16,
    "mlp_dim": 128,
    "num_encoder_layers": 2,
    "attention_scale": 0.25,
    "dtype": "float32",
}
_GEMMA = {**_SIZES, "num_decoder_layers": 2, "num_kv_heads": 2}
_NO_CAPS = {"attention_soft_cap": None, "logits_soft_cap": None}
_ENCODER = {"train.model": "@EncoderOnly()", "EncoderOnly.config": "@T5Config()"}
_PARITY = {
    "Task.targets": "'{parity}'",
    "Task.metrics": [],
    "Classification.inputs_length": 32,
    "Classification.classes": ["even", "odd"],
    "Classes.count": 2,
    "Classes.names": ["even", "odd"],
}
_TAGGING = {
    "Task.targets": "'{tags}'",
    "Task.metrics": [],
    "Tagging.inputs_length": 32,
    "Tagging.classes": list(TAGS),
    "Classes.count": len(TAGS),
    "Classes.names": list(TAGS),
}
_MASKED = {
    "Task.inputs": None,
    "Task.targets": "'{text}'",
    "Task.metrics": [],
    "Task.join_documents": False,
    "MaskedLM.inputs_length": 32,
}


def _config(fields):
    return {f"T5Config.{name}": value for name, value in fields.items()}


# Each model: files of gin/ after run.gin, and bindings.
MODELS = {
    "t5_tied": ((), _config({"tied_logits": True, "mlp_activations": ("relu",)})),
    "t5_gated": ((), _config({"tied_logits": False, "mlp_activations": ("gelu", "linear")})),
    "umt5": ((), _config({"tied_logits": False, "positions": "layer_bias"})),
    "t5gemma": (("models/t5gemma_s_s",), _config(_GEMMA)),
    "t5gemma_no_caps": (("models/t5gemma_s_s",), _config({**_GEMMA, **_NO_CAPS})),
    "t5gemma_2": (
        ("models/t5gemma_2_270m_270m",),
        _config({**_GEMMA, "end_of_image_token": None}),
    ),
    "t5_classifier": (
        ("objectives/classification_encoder_decoder",),
        {
            "train.model": "@EncoderDecoderClassifier()",
            "EncoderDecoderClassifier.config": "@T5Config()",
            **_config({"tied_logits": True}),
            **_PARITY,
        },
    ),
    "t5gemma_classifier": (
        ("models/t5gemma_s_s", "objectives/classification"),
        {
            **_ENCODER,
            **_config({**_GEMMA, **_NO_CAPS, "num_decoder_layers": 0, "attention_soft_cap": 50.0}),
            "T5Config.separate_embeddings": False,
            "T5Config.decoder_windows": (),
            "Classes.pooling": "'last'",
            **_PARITY,
        },
    ),
    "t5gemma_decoder_classifier": (
        ("models/t5gemma_s_s", "objectives/classification_encoder_decoder"),
        {
            "train.model": "@EncoderDecoderClassifier()",
            "EncoderDecoderClassifier.config": "@T5Config()",
            **_config({**_GEMMA, "logits_soft_cap": None}),
            "Classes.pooling": "'last'",
            "Classes.has_dense": False,
            **_PARITY,
        },
    ),
    "t5_tagger": (
        ("objectives/tagging",),
        {**_ENCODER, **_config({"num_decoder_layers": 0, "tied_logits": True}), **_TAGGING},
    ),
    "modernbert_tagger": (
        ("models/modernbert_base", "objectives/tagging"),
        {
            **_ENCODER,
            **_config({**_SIZES, "scale_tied_logits": True, "logits_bias": False}),
            **_TAGGING,
        },
    ),
    "bert": (("models/bert_base", "objectives/masked_lm"), {**_config(_SIZES), **_MASKED}),
    "modernbert": (
        ("models/modernbert_base", "objectives/masked_lm"),
        {**_config(_SIZES), **_MASKED},
    ),
    "t5_encoder": (
        ("objectives/masked_lm",),
        {**_ENCODER, **_config({"num_decoder_layers": 0, "tied_logits": True}), **_MASKED},
    ),
    "bert_encoder": (
        ("models/bert_base", "objectives/masked_lm"),
        {**_config({**_SIZES, "logits_transform": False, "logits_bias": False}), **_MASKED},
    ),
    "modernbert_encoder": (
        ("models/modernbert_base", "objectives/masked_lm"),
        {
            **_config({**_SIZES, "logits_transform": False, "logits_bias": False}),
            "T5Config.scale_tied_logits": True,
            **_MASKED,
        },
    ),
    "t5gemma_encoder": (
        ("models/t5gemma_s_s", "objectives/masked_lm"),
        {
            **_ENCODER,
            **_config({**_GEMMA, "num_decoder_layers": 0, "logits_soft_cap": None}),
            "T5Config.separate_embeddings": False,
            "T5Config.decoder_windows": (),
            **_MASKED,
        },
    ),
}


def in_words(number):
    """Returns a number under 1,000 in words, and the tag of each word."""
    hundreds, rest = divmod(number, 100)
    words = [(UNITS[hundreds], "unit"), ("hundred", "other")] if hundreds else []
    if words and rest:
        words.append(("and", "other"))
    tens, unit = divmod(rest, 10)
    if tens == 1:
        words.append((TEENS[unit], "teen"))
    elif tens:
        words.append((TENS[tens - 2], "tens"))
    if tens != 1 and (unit or not number):
        words.append((UNITS[unit], "unit"))
    return " ".join(word for word, _ in words), " ".join(tag for _, tag in words)


def write_data(folder):
    """Writes train.jsonl and validation.jsonl, and trains the vocabulary."""
    if (folder / "numbers.model").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(1000):
        text, tags = in_words(number)
        parity = "odd" if number % 2 else "even"
        records.append({"text": text, "digits": str(number), "parity": parity, "tags": tags})
    random.Random(0).shuffle(records)
    for split, some in (("validation", records[:HELD_OUT]), ("train", records[HELD_OUT:])):
        lines = [json.dumps(record) + "\n" for record in some]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    t5lite(
        "vocab",
        "--gin_file=gin/run/vocab.gin",
        "--gin.vocab.source=@FileSource()",
        f"--gin.FileSource.folder={folder}",
        "--gin.FileSource.files={'train': 'train.jsonl'}",
        "--gin.FileSource.fields=('text', 'digits', 'parity', 'tags')",
        "--gin.vocab.text={text} {digits} {parity} {tags}",
        "--gin.vocab.byte_fallback=False",
        f"--gin.OUTPUT={folder}/numbers.model",
        "--gin.SIZE=120",
    )


def make_and_export(folder, name):
    """Makes a model in folder/NAME, and writes it for transformers in folder/NAME_hf."""
    run = folder / name
    files, bindings = MODELS[name]
    paths = [RUN_FILE, *(f"gin/{file}.gin" for file in files)]
    values = {**bindings, "DATA": folder, "VOCABULARY": f"{folder}/numbers.model"}
    pairs = [f"{binding}={value}" for binding, value in values.items()]
    if not run.exists():
        if name in TRAINED:
            flags = [f"--gin_file={path}" for path in paths]
            t5lite("train", *flags, *(f"--gin.{pair}" for pair in pairs), f"--gin.MODEL_DIR={run}")
        else:
            _write_random(run, paths, pairs)
    exported = pathlib.Path(f"{run}_hf")
    if not exported.exists():
        t5lite("convert", f"--input={run}", f"--output={exported}", "--to=huggingface")
    return run, exported


def _write_random(run, paths, pairs):
    """Writes a checkpoint of random parameters, none of which has its usual constant value."""
    (built,) = configurables.load(paths, pairs, [], "train")
    rng = np.random.default_rng(0)
    params = {}
    for name, box in parameters(built.model).items():
        # Such as "normal, std 0.25" and "constant 1".
        kind, number = box.initializer.split()[-2:]
        shape = box.value.shape
        usual = rng.normal(size=shape) if kind == "std" else np.ones(shape)
        uneven = 0.0 if kind == "std" else rng.uniform(-0.5, 0.5, shape)
        params[name] = _lazy((float(number) * usual + uneven).astype(np.float32))
    vocabulary = built.task.vocabulary
    run.mkdir(parents=True)
    shutil.copyfile(vocabulary.path, run / VOCABULARY_COPY)
    about = {
        "model": describe(built.model),
        "vocabulary": {**vocabulary.describe(), "path": VOCABULARY_COPY},
        "vocabulary_fingerprint": vocabulary.fingerprint,
    }
    state = {
        "step": _lazy(np.zeros((), np.int32)),
        "params": flax.traverse_util.unflatten_dict(params, sep="/"),
    }
    write_lazily(run, 0, state, about)


def _lazy(array):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return LazyArray(array.shape, array.dtype, lambda: array, device)


def t5lite(*arguments):
    """Runs a command in this process."""
    try:
        main(arguments)
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"failed: t5lite {' '.join(arguments)}")
