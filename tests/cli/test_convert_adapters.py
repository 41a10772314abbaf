"""Adapters of PEFT converted, kept apart, merged and written again with the command."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

from t5lite import configurables
from t5lite.training.checksums_item import read_checksums
from t5lite.training.lazy_checkpoints import stored_params
from t5lite.training.stored_checkpoints import StoredCheckpoints
from tests.cli.progress import without_progress

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
ADAPTER = GOLDEN / "peft" / "rslora_dora"
KEEP = "--gin.convert.merge_adapters=False"


@pytest.fixture
def converted(command, tmp_path):
    """Converts to a new folder, and returns it and what was printed."""

    def convert(source, name, *flags):
        folder = tmp_path / name
        code, out, err = command("convert", f"--input={source}", f"--output={folder}", *flags)
        assert (code, without_progress(err)) == (0, "")
        return folder, out

    return convert


@pytest.fixture
def base(converted):
    return converted(GOLDEN / "huggingface" / "t5_1_1", "base")[0]


def stored(folder):
    return stored_params(StoredCheckpoints(folder / "checkpoints"), 0)


@pytest.mark.proof
def test_an_adapter_of_peft_is_kept_apart_merged_and_written_again(
    base, converted, command, tmp_path
):
    kept, _ = converted(ADAPTER, "kept", f"--base={base}", KEEP)
    own = read_checksums(kept / "checkpoints" / "0").arrays
    assert all("/lora_" in name for name in own if name.startswith("params/"))
    assert {name for name in stored(kept) if "/lora_" not in name} == set(stored(base))
    files = ["gin/run/quickstart.gin", str(kept / "model.gin")]
    # The base of the test has no vocabulary, and quickstart's is larger than its own.
    (run,) = configurables.load(files, ["T5Config.vocab_size=400"], [], "train")
    (adapter,) = run.model.config.adapters
    assert (adapter.rank, adapter.decomposed, adapter.rank_stabilized) == (2, True, True)

    merged, out = converted(kept, "merged")
    assert "the adapters of 11 linear maps are merged" in out
    changed = stored(merged)
    assert changed.keys() == stored(base).keys()
    for name, array in stored(base).items():
        is_adapted = name.endswith(("query/kernel", "value/kernel", "out/kernel", "wi_0/kernel"))
        assert np.array_equal(array.load(), changed[name].load()) is not is_adapted, name

    written, _ = converted(kept, "written", "--to=peft", "--gin.convert.base_name=t5_1_1")
    theirs = safetensors.numpy.load_file(ADAPTER / "adapter_model.safetensors")
    ours = safetensors.numpy.load_file(written / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    settings = json.loads((written / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "t5_1_1"

    # A base that was moved, and another one.
    moved = shutil.move(base, tmp_path / "moved")
    arguments = ("convert", f"--input={kept}", f"--output={tmp_path / 'again'}")
    code, _, err = command(*arguments)
    assert code != 0
    assert "base/checkpoints/0, which is not found; name its new location with --base" in err
    code, _, err = command(*arguments, f"--base={merged}")
    assert code != 0
    assert "needs the base with the fingerprint" in err
    again, _ = converted(kept, "again", f"--base={moved}")
    assert stored(again).keys() == changed.keys()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "is an adapter of PEFT for .*t5_1_1.*; convert that model with t5lite convert"),
        (("--base={base}", "--gin.convert.base_name=x"), "base_name is for --to=peft, got"),
        (("--base={tmp}/none",), "--base={tmp}/none not found"),
    ],
)
def test_a_mistake_with_an_adapter_is_one_line(flags, message, base, command, tmp_path):
    names = {"base": base, "tmp": tmp_path}
    code, _, err = command(
        *("convert", f"--input={ADAPTER}", f"--output={tmp_path / 'out'}"),
        *(flag.format(**names) for flag in flags),
    )
    assert code != 0
    assert re.search(message.format(**names), err), err
    assert not (tmp_path / "out").exists()


def test_base_is_for_adapters_alone(base, command, tmp_path):
    for source in (base, GOLDEN / "huggingface" / "t5_1_1"):
        arguments = ("convert", f"--input={source}", f"--output={tmp_path / 'out'}")
        code, _, err = command(*arguments, f"--base={base}")
        assert code != 0
        assert "--base is for " in err
