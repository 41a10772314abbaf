"""Training a SentencePiece vocabulary on the text of a source."""

import dataclasses
import io
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import grain

from t5lite.core.errors import UserError, check_choice
from t5lite.data.sources.formats import cut
from t5lite.data.sources.tfds_source import Source
from t5lite.data.text import preprocessors, templates

MODEL_TYPES = ("unigram", "bpe", "char", "word")
NORMALIZATIONS = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")

# SentencePiece leaves out longer sentences without a word.
MAX_SENTENCE_BYTES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyTraining:
    """What `t5lite vocab` does.

    Args:
        source, split: where the text is.
        output: the file to write; it must end in .model and must not be there.
        size: pieces, without sentinels: those are added where the vocabulary is used, by
            `SentencePieceVocabulary.num_sentinels`. Of "char" and "word" it is the most there are.
        preprocessors: as in `Task`.
        text: a template for the text of a record.
        model_type: "unigram", as T5's, or "bpe"; "char" has a piece for each character, "word" for
            each word of the text.
        normalization: of text before it is cut, by SentencePiece's name: "nmt_nfkc", as T5's;
            with "_cf" letters become small too; "identity" leaves all as it is. What it changes
            does not come back when ids become text, as where metrics compare that.
        byte_fallback: characters without a piece become their bytes instead of unknown.
        user_symbols: texts that are one piece each, such as "[NLU]".
        character_coverage: share of the text's characters that get pieces of their own.
        max_lines: so many lines of the text are used, those of records from all over the split.

    Raises:
        UserError: for choices out of range.
    """

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
        check_choice("vocab.model_type", self.model_type, MODEL_TYPES)
        check_choice("vocab.normalization", self.normalization, NORMALIZATIONS)
        if not 0 < self.character_coverage <= 1:
            raise UserError(
                f"vocab.character_coverage must be in (0, 1], got {self.character_coverage}"
            )
        if not self.output.endswith(".model"):
            raise UserError(f"vocab.output must end in .model, got {self.output!r}")
        for name in ("size", "max_lines"):
            if not 1 <= getattr(self, name) < 2**31:
                raise UserError(f"vocab.{name} must be in [1, 2**31), got {getattr(self, name)}")
        for step in self.preprocessors:
            preprocessors.preprocessor(step, owner="vocab.preprocessors")
        if not templates.fields_of("vocab.text", self.text):
            raise UserError(f"vocab.text must name a field, as in {{text}}, got {self.text!r}")


def train_vocabulary(training: VocabularyTraining, *, on_line: Callable[[], None]) -> int:
    """Trains, writes the model file and returns how many pieces it has.

    Args:
        on_line: called for every line that is read.

    Raises:
        UserError: where the output is there already, or the text does not give so many pieces.
    """
    import sentencepiece

    output = pathlib.Path(training.output).expanduser()
    if output.exists():
        raise UserError(f"vocab.output {training.output} is there already; name another")
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
            # Of the others just this size is asked for.
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
        reason = str(error).splitlines()[0].rpartition("] ")[2]
        raise UserError(
            f"vocab.size {training.size} cannot be had from this text: {reason}"
        ) from error
    partial = output.with_name(f"{output.name}.tmp")
    partial.write_bytes(model.getvalue())
    partial.replace(output)
    return int(sentencepiece.SentencePieceProcessor(model_file=str(output)).vocab_size())


def _lines(training: VocabularyTraining) -> Iterator[str]:
    """Yields the lines of the records, these in an order that mixes the whole split."""
    records = training.source.records(training.split)
    if not training.preprocessors:
        templates.check_fields("vocab.text", training.text, records.fields)
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
            for piece in cut(line, MAX_SENTENCE_BYTES - 1):
                if piece.strip():
                    yield piece
