"""`t5lite vocab`."""

from collections.abc import Sequence
from typing import Any

import rich.console

from t5lite import configurables
from t5lite.cli.quiet import quiet_libraries
from t5lite.core.counts import counted
from t5lite.data.text.vocabularies import SentencePieceVocabulary
from t5lite.data.text.vocabulary_training import train_vocabulary


def vocab_command(flags: Any, bindings: Sequence[str]) -> None:
    """Trains a vocabulary, and prints the bindings that use it."""
    quiet_libraries()
    (training,) = configurables.load(flags.gin_file, bindings, flags.gin_search_paths, "vocab")
    console = rich.console.Console(highlight=False, soft_wrap=True)
    count = 0
    with console.status("reading") as status:

        def on_line() -> None:
            nonlocal count
            count += 1
            if count % 10000 == 0:
                status.update(f"{counted(count, 'line')} read")

        size = train_vocabulary(training, on_line=on_line)
    sentinels = SentencePieceVocabulary.num_sentinels
    console.print(
        f"{training.output}: {size:,} pieces from {counted(count, 'line')}. To use it, bind\n"
        "  Task.vocabulary = @SentencePieceVocabulary()\n"
        f"  SentencePieceVocabulary.path = '{training.output}'\n"
        f"and, with its {counted(sentinels, 'sentinel')}, T5Config.vocab_size = "
        f"{size + sentinels:,} or more.",
        markup=False,
    )
