"""Checkpoints of adapters by the commands `eval` and `infer`, alone and several at once."""

import json
import re
import types

import pytest

from t5lite.cli.adapters import check_one_base
from t5lite.core.errors import UserError
from t5lite.models.architectures import EncoderDecoder
from t5lite.models.lora import LoRA
from t5lite.training.base_checkpoint import Base
from tests import small

# A rate at which an adapter of two steps changes scores.
TRAINED = (
    *small.QUICKSTART,
    "--gin_file=gin/adapters/lora.gin",
    "--gin.STEPS=2",
    "--gin.Cosine.learning_rate=0.3",
    "--gin.train.show_examples=0",
    "--gin.evaluate.split=validation[:4]",
)
TEXTS = ("some words", "other words here", "a third", "the last of them")


def objects(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.proof
def test_each_object_has_the_result_of_its_adapter_alone(command, trained, tmp_path):
    def infer(name, lines, *flags, mode="score"):
        given, output = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.out.jsonl"
        given.write_text("".join(json.dumps(line) + "\n" for line in lines))
        code, _, err = command(
            *("infer", f"--input={given}", f"--output={output}", f"--mode={mode}", *flags),
            *("--gin.infer.dtype=float32", "--gin.infer.targets_length=8"),
        )
        return (objects(output), err) if code == 0 else (code, err)

    # Of different ranks.
    for seed, name in enumerate("ab"):
        code, _, err = command(
            *("train", *TRAINED, f"--gin.SEED={seed}", f"--gin.MODEL_DIR={tmp_path / name}"),
            f"--gin.LoRA.rank={seed + 2}",
            f"--gin.train.initial_checkpoint={trained}/checkpoints/6",
        )
        assert code == 0, err
    split = "--gin.evaluate.split=validation[:4]"
    code, out, err = command("eval", f"--checkpoint={tmp_path / 'a'}", "--json", split)
    assert code == 0, err
    recorded = [m for m in objects(tmp_path / "a" / "metrics.jsonl") if "validation" in m["split"]]
    name = "cross_entropy_nats_per_token"
    assert json.loads(out)[0][name] == pytest.approx(recorded[-1][name], rel=1e-2)

    lines = [{"inputs": text, "targets": text[:5]} for text in TEXTS]
    chosen = ["b", None, "a", "b"]
    named = [{**line, "adapter": name} for line, name in zip(lines, chosen, strict=True) if name]
    named.insert(1, lines[1])
    both = [f"--adapter={name}={tmp_path / name}" for name in "ab"]
    got, err = infer("both", named, *both)
    sources = {"a": tmp_path / "a", "b": tmp_path / "b", None: trained}
    alone = {n: infer(f"of_{n}", lines, f"--checkpoint={s}")[0] for n, s in sources.items()}
    for row, name in enumerate(chosen):
        scores = {n: each[row]["score"] for n, each in alone.items()}
        assert got[row] == {
            **named[row],
            "score": pytest.approx(scores[name], rel=1e-4),
            "target_tokens": alone[name][row]["target_tokens"],
        }
        assert len({round(score, 2) for score in scores.values()}) == 3
    # The only adapter serves objects that name none.
    got, err = infer("only", lines[:1], both[0])
    assert got[0]["score"] == pytest.approx(alone["a"][0]["score"], rel=1e-4)

    for name, flags, asked, message in (
        ("unknown", both, [lines[0], {**lines[1], "adapter": "c"}], ":2: its adapter must be one"),
        ("twice", [both[0], both[0]], lines, "--adapter names 'a' twice"),
        ("form", ["--adapter=a"], lines, "--adapter must be NAME=CHECKPOINT.*got --adapter=a"),
        ("whole", [f"--adapter=a={trained}"], lines, "needs checkpoints with adapters of linear"),
        ("chosen", [*both, f"--checkpoint={trained}"], lines, "are mutually exclusive, got --che"),
    ):
        code, err = infer(name, asked, *flags)
        assert code != 0
        assert re.search(message, err), err


def stored(fingerprint, *trained, base="/base"):
    """A checkpoint with the parameters of its base, and with others that trained."""
    parameters = ("encoder/encoder_norm/scale",)
    found = fingerprint and Base(checkpoint=base, fingerprint=fingerprint, parameters=parameters)
    checkpoints = types.SimpleNamespace(
        base=lambda step: found, param_paths=lambda step: dict.fromkeys((*parameters, *trained))
    )
    return types.SimpleNamespace(checkpoints=checkpoints, step=2, path="/run/checkpoints/2")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            stored("cd", base="/other"),
            "have the base of --adapter=a, /base with the fingerprint ab, got /other with cd; run",
        ),
        (stored(None), "--adapter=b must be a checkpoint that holds an adapter alone, got /run"),
        (
            stored("ab", "decoder/decoder_norm/scale"),
            "--adapter=b must train parameters of adapters of linear maps alone, got decoder/dec",
        ),
    ],
)
def test_adapters_that_do_not_share_a_base_are_rejected(other, message):
    model = EncoderDecoder(small.config(adapters=(LoRA(rank=2),)))
    first = stored("ab", "encoder/layers/attention/query/lora_up")
    models = {"a": model, "b": model}
    check_one_base({"a": first}, models)
    with pytest.raises(UserError, match=message):
        check_one_base({"a": first, "b": other}, models)
