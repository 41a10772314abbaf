"""Training of a SentencePiece vocabulary on the text of a source."""

import dataclasses
import io
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import grain

from t5lite.core.errors import UserError
from t5lite.core.fields import check_field_choice, field_error, field_name
from t5lite.data.sources.formats import split_text
from t5lite.data.sources.tfds_source import Source
from t5lite.data.text import preprocessors, templates

MODEL_TYPES = ("unigram", "bpe", "char", "word")
NORMALIZATIONS = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")

# SentencePiece drops longer sentences silently.
MAX_SENTENCE_BYTES = 4096


# SentencePiece's names of padding, end of sequence and unknown.
RESERVED_PIECES = ("<pad>", "</s>", "<unk>")
# Its pieces of `byte_fallback`.
_BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


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
    """
    import sentencepiece

    output = pathlib.Path(os.path.expanduser(training.output))
    if output.exists():
        owner = field_name(training, "output")
        raise UserError(f"{owner} {training.output} exists; choose another file name")
    output.absolute().parent.mkdir(parents=True, exist_ok=True)

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
        reasons = [line.rpartition("] ")[2].strip() for line in str(error).splitlines()]
        reason = next(filter(None, reasons), "") or str(error).strip() or "SentencePiece failed"
        owner = field_name(training, "size")
        raise UserError(f"{owner} {training.size} is impossible for this text: {reason}") from error
    partial = output.with_name(f"{output.name}.tmp")
    partial.write_bytes(model.getvalue())
    partial.replace(output)
    return int(sentencepiece.SentencePieceProcessor(model_file=str(output)).vocab_size())


def _lines(training: VocabularyTraining) -> Iterator[str]:
    """Yields the lines of the records, in a random order of the whole split."""
    records = training.source.records(training.split)
    if not training.preprocessors:
        templates.check_template("vocab.text", training.text, records.fields)
    for position in range(len(records)):
        number = grain.experimental.index_shuffle(
            position, max_index=len(records) - 1, seed=0, rounds=4
        )
        record = preprocessors.changed(
            "vocab.preprocessors", training.preprocessors, records[int(number)], int(number)
        )
        if record is None:
            continue
        for line in templates.fill(training.text, record).splitlines():
            for piece in split_text(line, MAX_SENTENCE_BYTES - 1):
                if piece.strip():
                    yield piece
