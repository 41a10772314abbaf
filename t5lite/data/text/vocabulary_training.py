"""Training of a SentencePiece vocabulary on the text of a source."""

import dataclasses
import io
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import grain

from t5lite.core.errors import UserError
from t5lite.core.fields import check_field_choice, field_error, field_name
from t5lite.core.locks import hold_lock
from t5lite.data.sources.formats import split_text
from t5lite.data.sources.tfds_source import Source
from t5lite.data.text import preprocessors, templates
from t5lite.data.text.kept_texts import kept_pattern

MODEL_TYPES = ("unigram", "bpe", "char", "word")
NORMALIZATIONS = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")

# SentencePiece drops longer sentences silently.
MAX_SENTENCE_BYTES = 4096


# SentencePiece's names of padding, end of sequence and unknown.
RESERVED_PIECES = ("<pad>", "</s>", "<unk>")
# Its pieces of `byte_fallback`.
_BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


# The fields that SentencePiece's flags stand for.
_FIELDS = {
    "vocab_size": "vocab.size",
    "character_coverage": "vocab.character_coverage",
    "user_defined_symbols": "vocab.user_symbols",
    "byte_fallback": "vocab.byte_fallback",
    "model_type": "vocab.model_type",
    "normalization_rule_name": "vocab.normalization",
    "input_sentence_size": "vocab.max_lines",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyTraining:
    """The configuration of `t5lite vocab`.

    Args:
        source, split: the text to train on.
        output: the file to write; its name must end in .model, and it must not exist.
        size: number of pieces, without sentinels: `SentencePieceVocabulary.num_sentinels` adds
            these when the vocabulary is used. For "char" and "word" it is an upper bound.
        preprocessors: as in `Task`.
        text: a template for the text of a record.
        model_type: "unigram", as in T5, or "bpe"; "char" has a piece for each character, "word" for
            each word of the text.
        normalization: of text before encoding, by SentencePiece's name: "nmt_nfkc", as in T5; with
            "_cf" it also converts to lower case; "identity" changes nothing. Decoding does not
            restore the original text, which matters for metrics that compare text.
        byte_fallback: whether characters without a piece become bytes instead of unknown.
        user_symbols: texts that are one piece each, such as "[NLU]".
        character_coverage: fraction of the characters of the text that have pieces of their own.
        max_lines: number of lines to train on, from records in random order.

    Raises:
        UserError: if a field is out of range, or a symbol is empty or repeated.
    """

    gin_name: ClassVar[str] = "vocab"

    source: Source
    output: str
    size: int = 32000
    split: str = "train"
    preprocessors: Sequence[str] = ()
    text: str = "{text}"
    model_type: str = "unigram"
    normalization: str = "nmt_nfkc"
    byte_fallback: bool = True
    user_symbols: Sequence[str] = ()
    character_coverage: float = 0.9995
    max_lines: int = 5_000_000

    def __post_init__(self) -> None:
        check_field_choice(self, "model_type", MODEL_TYPES)
        check_field_choice(self, "normalization", NORMALIZATIONS)
        if not 0 < self.character_coverage <= 1:
            raise field_error(self, "character_coverage", "in (0, 1]")
        if not self.output.endswith(".model"):
            raise field_error(self, "output", "a file name that ends in .model")
        for name in ("size", "max_lines"):
            if not 1 <= getattr(self, name) < 2**31:
                raise field_error(self, name, "in [1, 2**31)")
        self._check_symbols()
        for step in self.preprocessors:
            preprocessors.preprocessor(step, owner=field_name(self, "preprocessors"))
        templates.check_names_field(field_name(self, "text"), self.text)

    def _check_symbols(self) -> None:
        owner = field_name(self, "user_symbols")
        symbols = list(self.user_symbols)
        if isinstance(self.user_symbols, str):
            raise UserError(f"{owner} must be a list, as in ['[NLU]'], got {self.user_symbols!r}")
        for symbol in symbols:
            if not isinstance(symbol, str) or not symbol.strip():
                raise UserError(f"{owner} must be texts that are not empty, got {symbol!r}")
            if symbols.count(symbol) > 1:
                raise UserError(f"{owner} must be different, but {symbol!r} is repeated")
            if symbol in RESERVED_PIECES:
                raise UserError(f"{owner} must not hold {symbol!r}, a piece of every vocabulary")
            if self.byte_fallback and symbol in _BYTE_PIECES:
                raise UserError(
                    f"{owner} must not hold {symbol!r}, a piece of vocab.byte_fallback; remove it, "
                    "or set that to False"
                )


def train_vocabulary(training: VocabularyTraining, *, on_line: Callable[[], None]) -> int:
    """Trains a vocabulary, writes the model file and returns its number of pieces.

    Args:
        on_line: called for every line that is read.

    Raises:
        UserError: if the output exists, or the text does not yield that many pieces.
        Unavailable: if another process is training the same output.
    """
    import sentencepiece

    owner = f"{field_name(training, 'output')} {training.output}"
    output = pathlib.Path(os.path.expanduser(training.output))
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.tmp")
    # Two processes would overwrite each other's vocabulary.
    with hold_lock(
        partial, lambda holder: f"{owner} is being trained by process {holder}; wait for it"
    ):
        try:
            if output.exists():
                raise UserError(f"{owner} exists; choose another file name")
            partial.write_bytes(_trained_model(training, on_line))
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
    return int(sentencepiece.SentencePieceProcessor(model_file=str(output)).vocab_size())


def _trained_model(training: VocabularyTraining, on_line: Callable[[], None]) -> bytes:
    """Returns the content of the model file."""
    import sentencepiece

    def lines() -> Iterator[str]:
        for line in itertools.islice(_lines(training), training.max_lines):
            on_line()
            yield line

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            vocab_size=training.size,
            # The others may have fewer pieces.
            hard_vocab_limit=training.model_type in ("unigram", "bpe"),
            model_type=training.model_type,
            normalization_rule_name=training.normalization,
            byte_fallback=training.byte_fallback,
            user_defined_symbols=list(training.user_symbols),
            character_coverage=training.character_coverage,
            max_sentence_length=MAX_SENTENCE_BYTES,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        owner = field_name(training, "size")
        reason = _in_own_names(str(error))
        raise UserError(f"{owner} {training.size} is impossible for this text: {reason}") from error
    return model.getvalue()


def _in_own_names(error: str) -> str:
    """Returns the reason of SentencePiece's error with the names of our fields for its flags.

    >>> _in_own_names("a.cc(9) [ok] Vocabulary size too high (99). Please set it to a value <= 45.")
    'it has 45 pieces at most; lower vocab.size'
    """
    lines = [line.rpartition("] ")[2].strip() for line in error.splitlines()]
    reason = next(filter(None, lines), "") or error.strip() or "SentencePiece failed"
    if most := re.search(r"value <= (\d+)", reason):
        return f"it has {most[1]} pieces at most; lower vocab.size"
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
        return (
            f"its characters need {least[1]} pieces at least; raise vocab.size or lower "
            "vocab.character_coverage"
        )
    return re.sub(r"-*\b(\w+)\b", lambda flag: _FIELDS.get(flag[1], flag[0]), reason)


def _lines(training: VocabularyTraining) -> Iterator[str]:
    """Yields the lines of the records, in a random order of the whole split."""
    records = training.source.records(training.split)
    if not training.preprocessors:
        templates.check_template("vocab.text", training.text, records.fields)
    kept = kept_pattern(symbol for symbol in training.user_symbols if len(symbol.strip()) > 1)
    for position in range(len(records)):
        number = grain.experimental.index_shuffle(
            position, max_index=len(records) - 1, seed=0, rounds=4
        )
        record = preprocessors.changed(
            "vocab.preprocessors",
            training.preprocessors,
            records[int(number)],
            int(number),
            kept=kept,
        )
        if record is None:
            continue
        for line in templates.fill(training.text, record).splitlines():
            for piece in split_text(line, MAX_SENTENCE_BYTES - 1):
                if piece.strip():
                    yield piece
