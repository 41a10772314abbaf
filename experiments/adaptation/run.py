"""Trains, adapts and compares all arms; resumes after an interruption, also inside a run."""

import json
import math
import os
import pathlib
import subprocess
import sys

from absl import app, flags

DATA = flags.DEFINE_string("data", None, "Folder of train.txt and validation.txt.", required=True)
WORK = flags.DEFINE_string("work", "runs/adaptation", "Folder of the runs.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds.")
ONLY = flags.DEFINE_list("only", [], "Names of arms; all if not given.")
RESULTS = flags.DEFINE_string("results", "experiments/adaptation/results.jsonl", "Written anew.")

STEPS = {"decoder": 500, "narrow": 500}
ADAPTED_STEPS = 150
# About the FLOPs of the pre-training and an adaptation together.
LONG_STEPS = 350
NARROW = ("T5Config.embed_dim=192", "T5Config.head_dim=48", "T5Config.mlp_dim=512")
NARROW_LAYERS = "T5Config.num_decoder_layers=2"
LENGTHS = ("UL2.inputs_length=64", "UL2.targets_length=64")
# Texts instead of mode tokens would be five bytes of every input.
MODES = "UL2.mode_tokens={'R': '', 'S': '', 'X': ''}"
CROSS = "decoder/layers/encoder_decoder_attention/.*"
# The cross-attention of an unbalanced pair is new.
FIRST = (
    "train.train_first=@TrainFirst()",
    f"TrainFirst.parameters=['{CROSS}']",
    "TrainFirst.steps=50",
)

# The teacher is the decoder-only model that was adapted; weight and temperature are the defaults.
DISTILLED = "adapted, PrefixLM + distillation"
# Each arm: the adaptation that its model is, whether it starts from its parameters, the objective,
# and the steps.
ARMS = {
    "adapted, PrefixLM": ("balanced", True, "prefix_lm", ADAPTED_STEPS),
    DISTILLED: ("balanced", True, "prefix_lm", ADAPTED_STEPS),
    "scratch, PrefixLM": ("balanced", False, "prefix_lm", LONG_STEPS),
    "unbalanced, adapted, PrefixLM": ("unbalanced", True, "prefix_lm", ADAPTED_STEPS),
    "unbalanced, scratch, PrefixLM": ("unbalanced", False, "prefix_lm", ADAPTED_STEPS),
    "merged, adapted, PrefixLM": ("merged", True, "prefix_lm", ADAPTED_STEPS),
    "adapted, UL2": ("balanced", True, "ul2", ADAPTED_STEPS),
    "scratch, UL2": ("balanced", False, "ul2", ADAPTED_STEPS),
}
ADAPTATIONS = {
    "balanced": ("--adapt=encoder_decoder", "decoder", None),
    "merged": ("--adapt=merged_encoder_decoder", "decoder", None),
    "unbalanced": ("--adapt=encoder_decoder", "narrow", "decoder"),
}


def t5lite(folder, *arguments, output=None):
    """Runs a command, and adds its processor time to a file in `folder`."""
    process = subprocess.Popen([sys.executable, "-m", "t5lite", *arguments], stdout=output)
    _, status, used = os.wait4(process.pid, 0)
    folder.mkdir(parents=True, exist_ok=True)
    line = {"command": arguments[0], "processor_seconds": round(used.ru_utime + used.ru_stime, 1)}
    with (folder / "processor.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    if status:
        sys.exit(f"failed: t5lite {' '.join(arguments)}")


def train(folder, run_file, seed, steps, *more):
    """Trains a run to its last step, unless it got there."""
    done = folder / "result.json"
    if done.exists() and json.loads(done.read_text())["step"] >= steps:
        return
    arguments = (f"--gin_file=experiments/adaptation/{run_file}.gin", *more)
    values = (f"DATA={DATA.value}", f"MODEL_DIR={folder}", f"SEED={seed}", f"STEPS={steps}")
    t5lite(folder, "train", *arguments, *(f"--gin.{value}" for value in values))


def pretrain(base, seed):
    """Trains the decoder-only models."""
    for name, steps in STEPS.items():
        sizes = (*NARROW, NARROW_LAYERS) if name == "narrow" else ()
        train(base / name, "decoder", seed, steps, *(f"--gin.{size}" for size in sizes))


def adapted(base, name, seed):
    """Returns the folder of an adaptation, which is made once."""
    form, decoder, encoder = ADAPTATIONS[name]
    folder = base / f"adapted_{name}"
    if not folder.exists():
        pair = [] if encoder is None else [f"--adapt_encoder={base / encoder}"]
        flags = (f"--input={base / decoder}", f"--output={folder}", form, *pair)
        seeded = [] if encoder is None else [f"--gin.convert.seed={seed}"]
        t5lite(base / "convert", "convert", *flags, *seeded)
    return folder


def folder_name(arm):
    """Returns the name of the folder of an arm."""
    return arm.replace(", ", "_").replace(" + ", "_")


def run_arm(base, arm, seed):
    """Trains an arm, and scores the checkpoints of those that trained on other examples."""
    adaptation, starts, objective, steps = ARMS[arm]
    model = adapted(base, adaptation, seed)
    folder = base / folder_name(arm)
    more = [f"--gin_file={model}/model.gin"]
    bindings = []
    if starts:
        bindings.append(f"train.initial_checkpoint={model}/checkpoints/0")
    if starts and adaptation == "unbalanced":
        bindings += FIRST
    if arm == DISTILLED:
        more.append("--gin_file=gin/losses/distillation.gin")
        bindings.append(f"Teacher.checkpoint={base / 'decoder'}")
    if objective == "ul2":
        more.append("--gin_file=gin/objectives/ul2.gin")
        bindings += (*LENGTHS, MODES)
    train(folder, "encoder_decoder", seed, steps, *more, *(f"--gin.{b}" for b in bindings))
    scores = folder / "prefix_lm.json"
    if objective == "ul2" and not scores.exists():
        run = ("--gin_file=experiments/adaptation/encoder_decoder.gin", more[0])
        values = (f"DATA={DATA.value}", f"MODEL_DIR={folder}", f"SEED={seed}")
        flags = ("--checkpoint=all", "--json", *(f"--gin.{value}" for value in values))
        partial = scores.with_suffix(".partial")
        with partial.open("w") as file:
            t5lite(folder, "eval", *run, *flags, output=file)
        partial.rename(scores)


def records(base, name, seed):
    """Yields the validation losses of a run, with the processor time of all of its training."""
    folder = base / folder_name(name)
    # Those that trained on other examples have scores of their own on the same targets.
    scored = name in ARMS and ARMS[name][2] == "ul2"
    if not (folder / ("prefix_lm.json" if scored else "result.json")).exists():
        return
    lines = (folder / "processor.jsonl").read_text().splitlines()
    used = [json.loads(line) for line in lines]
    seconds = sum(u["processor_seconds"] for u in used if u["command"] == "train")
    metrics = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    train = next(m for m in metrics if m.get("split") == "train")
    # The same at every step, by the formula; those of the teacher included.
    flops = round(train["model_flops_per_second"] * train["step_seconds"])
    if scored:
        scores = json.loads((folder / "prefix_lm.json").read_text())
    else:
        scores = [m for m in metrics if m.get("split") == "validation"]
    for score in sorted(scores, key=lambda score: score["step"]):
        yield {
            "arm": name,
            "seed": seed,
            "step": score["step"],
            "validation_nats_per_token": score["cross_entropy_nats_per_token"],
            "validation_nats_per_byte": score["bits_per_byte"] * math.log(2),
            "target_tokens": score["target_tokens"],
            "teraflop": round(flops * score["step"] / 1e12, 3),
            "processor_seconds_of_training": round(seconds, 1),
        }


def main(_):
    for seed in map(int, SEEDS.value):
        base = pathlib.Path(WORK.value) / str(seed)
        pretrain(base, seed)
        for arm in ARMS:
            if not ONLY.value or arm in ONLY.value:
                run_arm(base, arm, seed)
    with pathlib.Path(RESULTS.value).open("w") as file:
        for base in sorted(pathlib.Path(WORK.value).glob("[0-9]*")):
            for name in (*STEPS, *ARMS):
                for line in records(base, name, int(base.name)):
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    app.run(main)
