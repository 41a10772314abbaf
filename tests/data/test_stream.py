import contextlib
import itertools

import numpy as np
import pytest

from t5lite.core.errors import UserError
from t5lite.data.stream import Cursor, Reader, eval_batches, train_batches
from tests import small


@pytest.fixture(scope="module", params=[False, True], ids=["span_corruption", "causal"])
def task(request, text_file, data_dir):
    return small.task(text_file, data_dir, causal=request.param)


def _take(task, count, *, rows=range(6), seed=0, cursors=None):
    batches = train_batches(
        task, "train", rows=list(rows), batch_size=6, seed=seed, cursors=cursors
    )
    with contextlib.closing(batches):
        return list(itertools.islice(batches, count))


def _text(ids):
    return (ids - 3).astype(np.uint8).tobytes()


def _assert_equal(some, others):
    assert some.keys() == others.keys()
    for name in some:
        np.testing.assert_array_equal(some[name], others[name], err_msg=name)


def test_a_row_is_the_same_whoever_reads_it(task):
    whole = _take(task, 20)
    for rows in ([0, 1, 2], [3, 4, 5], [4]):
        for batch, part in zip(whole, _take(task, 20, rows=rows), strict=True):
            _assert_equal({name: array[rows] for name, array in batch.items()}, part)


@pytest.mark.parametrize("step", [1, 7, 19])
def test_cursors_of_a_batch_give_the_batches_after_it(task, step):
    whole = _take(task, 24)
    resumed = _take(task, 24 - step, cursors=whole[step - 1]["cursors"])
    for batch, again in zip(whole[step:], resumed, strict=True):
        _assert_equal(batch, again)


def test_another_seed_gives_other_batches(task):
    first, second = (_take(task, 1, seed=seed)[0] for seed in (0, 1))
    name = "decoder_target_tokens"
    assert not np.array_equal(first[name], second[name])


def test_rows_together_read_every_document_once_an_epoch(text_file, data_dir):
    task = small.task(text_file, data_dir, causal=True)
    documents = task.source.documents("train")
    lines = sorted(documents[i] for i in range(len(documents)))
    texts: list[bytes] = []
    batches = _take(task, 40)
    for row in range(6):
        targets = [batch["decoder_target_tokens"][row] for batch in batches]
        first = batches[0]["decoder_input_tokens"][row][:1]
        texts.append(_text(np.concatenate([first, *targets])))
    # Two rows have seven of the forty documents in the first epoch, the others six or seven; each
    # begins with its own.
    order: list[bytes] = []
    for row, text in enumerate(texts):
        for _ in range(row, len(lines), 6):
            line = max((line for line in set(lines) if text.startswith(line)), key=len)
            order.append(line)
            text = text[len(line) :]
    assert sorted(order) == lines


def test_evaluation_scores_every_token_once_whatever_the_batch(text_file, data_dir):
    task = small.task(text_file, data_dir, causal=True)
    documents = task.source.documents("validation")
    text = b"".join(documents[i] for i in range(len(documents)))
    for batch_size in (1, 7, 64):
        rows = list(range(batch_size))
        batches = list(eval_batches(task, "validation", rows=rows, batch_size=batch_size))
        targets = np.concatenate([b["decoder_target_tokens"] for b in batches])
        weights = np.concatenate([b["decoder_loss_weights"] for b in batches])
        assert _text(targets[weights > 0]) == text[1:]


def test_evaluation_corrupts_alike_at_every_call(task):
    first, second = (
        list(eval_batches(task, "validation", rows=range(8), batch_size=8)) for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        _assert_equal(one, other)


def test_a_reader_runs_on_across_documents_and_ends():
    texts = [np.arange(3), np.zeros(0, int), np.arange(3, 8)]
    reader = Reader(lambda n: texts[n] if n < 3 else None, 3)
    read, cursor = [], Cursor()
    for _ in range(5):
        tokens, cursor = reader.read(cursor, 2)
        read.append(tokens.tolist())
    assert read == [[0, 1], [2, 3], [4, 5], [6, 7], []]
    assert (cursor.document, cursor.offset) == (3, 0)


def test_a_corpus_without_a_token_is_refused():
    reader = Reader(lambda n: np.zeros(0, int), 3)
    with pytest.raises(UserError, match="the corpus is empty"):
        reader.read(Cursor(), 1)
