import hashlib

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.batching.features import DecoderLayout, EncoderDecoderLayout, batch_of
from t5lite.data.batching.order import shuffled_order
from t5lite.data.batching.row_stream import Cursor
from t5lite.data.batching.stream import eval_examples
from t5lite.data.sources.file_source import FileSource
from t5lite.data.task import Task
from tests import small
from tests.data import streams
from tests.data.streams import BATCH_SIZE, digest, global_batches, take

NUM_BATCHES = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("streams")
    streams.write_files(made)
    return str(made)


@pytest.fixture(scope="module")
def whole(folder):
    """The batches of the mixture from one process with a thread, and their cursors."""
    return take(streams.mixture(folder), NUM_BATCHES)


def _features(batches):
    return [features for features, _ in batches]


@pytest.mark.proof
@pytest.mark.parametrize(
    ("processes", "workers"),
    [(1, 1), (1, 4), (2, 0), (4, 0), (8, 0)],
)
def test_batches_are_the_same_for_any_number_of_processes_and_workers(
    processes, workers, folder, whole
):
    batches, cursors = global_batches(folder, NUM_BATCHES, processes=processes, workers=workers)
    assert digest(batches) == digest(_features(whole))
    assert cursors == whole[-1][1]


@pytest.mark.proof
@pytest.mark.parametrize("numbers", [(1, 2), (1, 4, 2, 8)], ids=str)
def test_batches_are_the_same_after_restarts_on_other_numbers_of_processes(
    numbers, folder, whole, rng
):
    steps = sorted(rng.choice(np.arange(1, NUM_BATCHES), len(numbers) - 1, replace=False))
    made, cursors = [], None
    for start, stop, processes in zip([0, *steps], [*steps, NUM_BATCHES], numbers, strict=True):
        batches, cursors = global_batches(
            folder, int(stop - start), processes=processes, cursors=cursors
        )
        cursors = [Cursor.from_json(cursor.to_json()) for cursor in cursors]
        made += batches
    assert digest(made) == digest(_features(whole)), f"restarted at {steps}"


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
@pytest.mark.parametrize("kind", ["joined", "apart", "causal"])
def test_cursors_of_every_batch_give_the_batches_after_it(kind, packed, folder):
    tasks = dict(zip(["joined", "apart"], streams.mixture(folder).tasks, strict=False))
    task = streams.causal(folder) if kind == "causal" else tasks[kind]
    layout = streams.decoder_layout() if kind == "causal" else streams.LAYOUT
    batches = take(task, 30, layout=layout, packed=packed)
    for step in (1, 2, 7, 29):
        again = take(task, 30 - step, layout=layout, packed=packed, cursors=batches[step - 1][1])
        assert digest(_features(again)) == digest(_features(batches[step:])), step


def test_batches_do_not_change_from_one_release_to_the_next(folder, whole):
    # Runs resume with the same data. A change of this digest needs a new STREAM_VERSION and an
    # entry in the changelog.
    assert digest(_features(whole))[:16] == GOLDEN


GOLDEN = "18e057bbba75c1eb"


def test_another_seed_gives_other_batches(folder, whole):
    other = take(streams.mixture(folder), 5, seed=1)
    assert digest(_features(other)) != digest(_features(whole[:5]))


def _pairs(count, folder, **changes):
    """A task of pairs that contain their own numbers."""
    path = folder / f"pairs{count}.tsv"
    path.write_text("".join(f"{n:04d}{'x' * (n % 37)}\t{'y' * (n % 11)}\n" for n in range(count)))
    choices = {"objective": streams.mixture(str(folder)).tasks[2].objective, **changes}
    return Task(
        source=FileSource(
            files={"train": str(path)}, fields=("n", "y"), data_dir=str(folder / "tfds")
        ),
        vocabulary=small.ByteVocabulary(),
        inputs="{n}",
        targets="{y}",
        **choices,
    )


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
def test_an_epoch_holds_every_example_once(packed, tmp_path):
    count, seed = 400, 5
    batches = take(_pairs(count, tmp_path), 80, packed=packed, seed=seed)
    order = shuffled_order(count, (seed, 0))
    for row in range(BATCH_SIZE):
        numbers = []
        for features, _ in batches:
            tokens = features["encoder_input_tokens"][row]
            segments = features["encoder_segment_ids"][row]
            for segment in range(1, segments.max() + 1):
                numbers.append(int(bytes((tokens[segments == segment][:4] - 3).astype(np.uint8))))
        # All examples before the oldest waiting one, and later ones that were packed with older
        # ones. The rows divide the permutation of an epoch among them.
        cursor = batches[-1][1][row]
        read = [*range(cursor.example), *cursor.taken]
        assert sorted(numbers) == sorted(order(row + n * BATCH_SIZE) for n in read)
        assert cursor.example > count // BATCH_SIZE


def test_evaluation_reads_every_token_once(text_file, data_dir):
    task = small.task(text_file, data_dir, causal=True)
    records = task.source.records("validation")
    text = "".join(records[i]["text"] for i in range(len(records)))
    examples = list(eval_examples(task, "validation"))
    targets = np.concatenate([example["targets"] for example in examples])
    assert task.vocabulary.decode(targets) == text[1:]


def test_evaluation_corrupts_alike_at_every_call(folder):
    task = streams.mixture(folder).tasks[1]
    first, second = (
        [
            {name: tokens.tolist() for name, tokens in example.items()}
            for example in eval_examples(task, "validation")
        ]
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("special", [{}, {"bos_id": 2}], ids=["t5", "bos"])
def test_separate_documents_are_complete_and_framed(folder, special):
    task = streams.causal(folder, **special)
    start = special.get("bos_id", 0)
    records = task.source.records("train")
    texts = [records[i]["text"] for i in range(len(records))]
    found, text = [], ""
    for example in eval_examples(task, "train"):
        batch = batch_of(DecoderLayout(40), [[example]])
        weights = batch["decoder_loss_weights"][0] > 0
        targets, inputs = (batch[f"decoder_{n}_tokens"][0][weights] for n in ("target", "input"))
        assert (inputs[0] == start) == (text == ""), f"a document begins with {start}"
        text += task.vocabulary.decode(targets)
        if targets[-1] == task.vocabulary.eos_id:
            found.append(text)
            text = ""
    assert found == texts


def _of_lines(text, folder, *, step):
    """A task of the lines of a text, with a preprocessor of this file."""
    (folder / "text.txt").write_text(text)
    return Task(
        source=FileSource(
            files={"train": "text.txt"}, folder=str(folder), data_dir=str(folder / "tfds")
        ),
        vocabulary=small.ByteVocabulary(),
        objective=small.SpanCorruption(inputs_length=24),
        preprocessors=[f"tests.data.test_stream:{step}"],
    )


def test_a_corpus_without_tokens_is_rejected(tmp_path):
    task = _of_lines("a\n" * 5, tmp_path, step="nothing")
    with pytest.raises(UserError, match="'task' gives no example: none of its 5 records"):
        take(task, 1, layout=EncoderDecoderLayout(24, 8))


def test_a_few_records_with_text_among_many_are_found(tmp_path):
    task = _of_lines("drop\n" * 99 + "keep this line of text\n", tmp_path, step="keep")
    assert len(take(task, 2, layout=EncoderDecoderLayout(24, 8), packed=False)) == 2


def keep(record):
    """A preprocessor that drops nearly every record."""
    return record if "keep" in record["text"] else None


def nothing(record):
    """A preprocessor that drops every record."""


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_the_order_of_an_epoch_is_a_permutation_and_differs_from_the_next(count):
    order = shuffled_order(count, (3, 0))
    epochs = [[order(e * count + i) for i in range(count)] for e in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 7:
        assert len({hashlib.sha256(bytes(str(e), "ascii")).digest() for e in epochs}) == 3
