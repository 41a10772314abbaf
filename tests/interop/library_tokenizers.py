"""Small tokenizers in the form that the families publish them: tokenizer.json and its settings."""

import functools
import json
import pathlib
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.interop.multilingual import lines

KINDS = ("gemma", "llama3", "qwen3", "bert", "modernbert")
# Of Llama 3, and of Qwen 2 and 3: GPT-4's words with other runs of digits.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SIZE = 1500


@functools.cache
def training_lines() -> tuple[str, ...]:
    return tuple(lines(1500, seed=1))


def token(content: str, number: int, **flags: bool) -> dict[str, Any]:
    usual = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **usual, **flags}


def folder_of(kind: str, folder: pathlib.Path) -> pathlib.Path:
    """Writes the tokenizer files of a family and returns the folder."""
    folder.mkdir(parents=True)
    content, settings = {
        "gemma": _gemma,
        "llama3": _llama3,
        "qwen3": _qwen3,
        "bert": _bert,
        "modernbert": _modernbert,
    }[kind]()
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _gemma() -> tuple[dict[str, Any], dict[str, Any]]:
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    # Pieces do not continue after a space.
    made.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    unused = [f"<unused{number}>" for number in range(99)]
    runs = ["\n\n", "\n\n\n"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    names = [*special, *unused, *runs, *pieces]
    made.train_from_iterator(training_lines(), _bpe_trainer(names))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.post_processor = _frame(("<bos>", 2))
    content = json.loads(made.to_str())
    content["added_tokens"] = [token(text, i) for i, text in enumerate(special)] + [
        token(text, i, special=False) for i, text in enumerate([*unused, *runs], start=5)
    ]
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
    }
    return content, settings


def _llama3() -> tuple[dict[str, Any], dict[str, Any]]:
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS % r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(training_lines(), _bpe_trainer([], byte_level=True))
    size = made.get_vocab_size()
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    names += [f"<|reserved_special_token_{number}|>" for number in range(40)]
    made.add_special_tokens([tokenizers.AddedToken(n, special=True) for n in names])
    made.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), _frame(("<|begin_of_text|>", size))]
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
    }
    return json.loads(made.to_str()), settings


def _qwen3() -> tuple[dict[str, Any], dict[str, Any]]:
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS % r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.train_from_iterator(training_lines(), _bpe_trainer([], byte_level=True))
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.add_special_tokens([tokenizers.AddedToken(n, special=True) for n in names])
    made.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
    }
    return json.loads(made.to_str()), settings


def _bert() -> tuple[dict[str, Any], dict[str, Any]]:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    unused = [f"[unused{number}]" for number in range(20)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=_SIZE, special_tokens=["[PAD]", *unused, *special], show_progress=False
    )
    made.train_from_iterator(training_lines(), trainer)
    made.post_processor = _frame(("[CLS]", 22), ("[SEP]", 23))
    content = json.loads(made.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in unused]
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        **{f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")},
    }
    return content, settings


def _modernbert() -> tuple[dict[str, Any], dict[str, Any]]:
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(training_lines(), _bpe_trainer([], byte_level=True))
    runs = [" " * count for count in range(8, 1, -1)]
    made.add_tokens([tokenizers.AddedToken(text, normalized=True) for text in runs])
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    made.add_special_tokens([tokenizers.AddedToken(n, special=True) for n in names])
    made.add_special_tokens([tokenizers.AddedToken("[MASK]", lstrip=True, special=True)])
    made.add_tokens([tokenizers.AddedToken(f"[unused{i}]", normalized=True) for i in range(10)])
    ids = {name: made.token_to_id(name) for name in names}
    made.post_processor = _frame(("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"]))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": True,
        **{f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")},
    }
    return json.loads(made.to_str()), settings


def _bpe_trainer(names: list[str], *, byte_level: bool = False) -> trainers.BpeTrainer:
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    return trainers.BpeTrainer(
        vocab_size=_SIZE,
        special_tokens=names,
        initial_alphabet=alphabet,
        limit_alphabet=400,
        max_token_length=12,
        show_progress=False,
    )


def _frame(first: tuple[str, int], *last: tuple[str, int]) -> processors.TemplateProcessing:
    single = " ".join([first[0], "$A", *(text for text, _ in last)])
    return processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1", special_tokens=[first, *last]
    )


def gemma_model_folder(folder: pathlib.Path) -> pathlib.Path:
    """Writes a SentencePiece model like Gemma's, with its settings, and returns the folder."""
    folder.mkdir(parents=True)
    unused = [f"<unused{number}>" for number in range(99)]
    runs = ["\n" * count for count in range(1, 5)] + ["\u2581" * count for count in range(2, 9)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_lines()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=2600,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<mask>", *unused, *runs, "<table>"],
        control_symbols=["<start_of_turn>", "<end_of_turn>"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    names = ("pad", "eos", "bos", "unk")
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): token(f"<{name}>", i) for i, name in enumerate(names)},
        **{f"{name}_token": f"<{name}>" for name in names},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
