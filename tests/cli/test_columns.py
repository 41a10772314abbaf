"""Tables that fit the terminal."""

import pytest

from t5lite.cli.columns import columns_text

TITLES = ["trial", "Cosine.learning_rate", "train.seed", "cross_entropy_nats_per_token", "step"]
ROWS = [["0*", "0.01", "1", "1.4728", "200/200"], ["1", "0.001", "0", "1.49165", "20/200"]]
NAMES = ["Cosine.learning_rate", "train.seed"]


@pytest.mark.parametrize("width", [40, 60, 80, None])
def test_no_cell_is_wrapped_or_cut(width):
    text = columns_text(TITLES, ROWS, width=width, gin_names=NAMES)
    assert all(len(line) <= (width or 1000) for line in text.splitlines())
    for cell in ("cross_entropy_nats_per_token", *ROWS[0], *ROWS[1]):
        assert cell in text.split()


def test_each_block_begins_with_the_first_column():
    blocks = columns_text(TITLES, ROWS, width=40, gin_names=NAMES).split("\n\n")
    assert len(blocks) > 1
    assert all(block.split()[0] == "trial" for block in blocks)


def test_a_long_first_column_stands_above_the_others():
    names = ["decoder/layers/encoder_decoder_attention/query/kernel", "token_embedder/embedding"]
    rows = [[names[0], "1 layers, 16 embed, 2 heads, 8 kv", "256"], [names[1], "384 vocab", "9"]]
    text = columns_text(["parameter", "shape", "count"], rows, width=80, left=["shape"])
    assert text.splitlines() == [
        "parameter",
        "  shape                              count",
        names[0],
        "  1 layers, 16 embed, 2 heads, 8 kv    256",
        names[1],
        "  384 vocab                              9",
    ]


def test_gin_names_lose_their_owner_only_in_a_narrow_table():
    assert "Cosine.learning_rate" in columns_text(TITLES, ROWS, width=None, gin_names=NAMES)
    narrow = columns_text(TITLES, ROWS, width=75, gin_names=NAMES)
    assert narrow.splitlines()[0].split() == ["trial", "learning_rate", "seed", *TITLES[3:]]
    twins = ["a.rate", "b.rate"]
    assert columns_text(["run", *twins], [["0", "1", "2"]], width=12, gin_names=twins).split() == [
        *("run", "a.rate", "0", "1", "run", "b.rate", "0", "2"),
    ]
