"""What T5Gemma 2 has for images is kept beside a converted checkpoint and written back."""

import json
import pathlib

import numpy as np
from safetensors.numpy import load_file

from t5lite.interop.foreign import Foreign
from t5lite.interop.huggingface import read_huggingface, write_huggingface
from t5lite.interop.kept import read_kept, write_kept

T5GEMMA2 = pathlib.Path(__file__).parent.parent / "golden" / "huggingface" / "t5gemma2"


def of_images(folder):
    tensors = load_file(folder / "model.safetensors")
    return {n: t for n, t in tensors.items() if "vision_tower" in n or "multi_modal" in n}


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_parts_for_images_come_back_unchanged_from_the_file_beside_a_checkpoint(tmp_path):
    foreign = read_huggingface(T5GEMMA2)
    assert foreign.kept is not None
    write_kept(tmp_path, foreign.kept)
    kept = read_kept(tmp_path)
    assert kept is not None
    assert kept.settings == foreign.kept.settings
    (tmp_path / "out").mkdir()
    # Parameters are rounded, but not what is kept.
    write_huggingface(
        Foreign(model=foreign.model, params=foreign.params, kept=kept),
        tmp_path / "out",
        np.dtype("float16"),
    )
    before = of_images(T5GEMMA2)
    after = of_images(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    theirs = settings_of(T5GEMMA2)["encoder"]
    ours = settings_of(tmp_path / "out")["encoder"]
    assert ours["vision_config"] == theirs["vision_config"]
    assert ours["mm_tokens_per_image"] == theirs["mm_tokens_per_image"]


def test_zeros_are_written_for_images_with_a_remark_if_nothing_was_kept(tmp_path):
    foreign = read_huggingface(T5GEMMA2)
    alone = Foreign(model=foreign.model, params=foreign.params)
    remarks = write_huggingface(alone, tmp_path, np.dtype(np.float32))
    assert any("zeros are written" in remark and "kept.safetensors" in remark for remark in remarks)
    assert of_images(tmp_path)
    assert not any(array.any() for array in of_images(tmp_path).values())
    assert read_kept(tmp_path) is None
