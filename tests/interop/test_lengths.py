"""Lengths of config.json that limit no model here are written back."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from t5lite.interop.huggingface import read_huggingface, write_huggingface

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "huggingface"


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("case", "paths"),
    [
        ("llama", [("max_position_embeddings",)]),
        ("modernbert", [("max_position_embeddings",)]),
        (
            "t5gemma2",
            [
                ("encoder", "text_config", "max_position_embeddings"),
                ("decoder", "max_position_embeddings"),
            ],
        ),
    ],
)
def test_lengths_are_written_where_the_source_had_them(case, paths, tmp_path):
    foreign = read_huggingface(GOLDEN / case)
    write_huggingface(foreign, tmp_path, np.dtype(np.float32))
    theirs = settings_of(GOLDEN / case)
    ours = settings_of(tmp_path)
    for path in paths:
        there, here = theirs, ours
        for name in path:
            there, here = there[name], here[name]
        assert here == there


def test_number_of_positions_of_t5_is_written(tmp_path):
    shutil.copytree(GOLDEN / "t5_1_1", tmp_path / "a")
    settings = settings_of(tmp_path / "a") | {"n_positions": 512}
    (tmp_path / "a" / "config.json").write_text(json.dumps(settings))
    foreign = read_huggingface(tmp_path / "a")
    (tmp_path / "b").mkdir()
    write_huggingface(foreign, tmp_path / "b", np.dtype(np.float32))
    assert settings_of(tmp_path / "b")["n_positions"] == 512


def test_length_that_a_family_does_not_have_is_not_written(tmp_path):
    foreign = read_huggingface(GOLDEN / "t5_1_1")
    lengths = {"decoder": {"n_positions": 3}, "max_position_embeddings": 4}
    strange = dataclasses.replace(foreign, lengths=lengths)
    write_huggingface(strange, tmp_path, np.dtype(np.float32))
    unknown = {"decoder", "n_positions", "max_position_embeddings"}
    assert not unknown & settings_of(tmp_path).keys()
