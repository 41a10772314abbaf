"""Plans T5 models of many sizes for many TPU slices; resumes after an interruption."""

import concurrent.futures
import json
import pathlib
import subprocess
import sys
import time

from absl import app, flags

RESULTS = flags.DEFINE_string("results", "experiments/pods/results.jsonl", "Appended to.")
PARALLEL = flags.DEFINE_integer("parallel", 2, "Plans to compile at a time.")
ONLY = flags.DEFINE_string("only", "", "Only plans whose name contains this.")
TABLE = flags.DEFINE_boolean("table", False, "Print the results as Markdown and plan nothing.")

# Mesh.fsdp of each model. Over all chips of a large slice, XLA reduces whole gradients on each.
MODELS = {
    "t5_1_1_small": 16,
    "t5_1_1_base": 16,
    "t5_1_1_large": 16,
    "t5_1_1_xl": 16,
    "t5_1_1_xxl": 32,
    "t5_1_0_11b": 32,
    "ul2": 64,
}
# Encoder-decoders made from decoders, on two of the slices.
ADAPTED = {"t5gemma_2b_2b": 16, "t5gemma_9b_9b": 32}
ADAPTED_SLICES = ("v5p:4x4x4", "v6e:16x16")
# Their windows are wider than the sequences. Layers without windows compute the same, and are all
# alike: the loop over them has one layer instead of two.
NO_WINDOWS = ("T5Config.encoder_windows=()", "T5Config.decoder_windows=()")
FULL_REMAT = ("t5_1_1_xxl", "t5_1_0_11b", "ul2", "t5gemma_9b_9b")
# Devices per slice, and slices.
SLICES = {
    "v5e:16x16": (256, 1),
    "v5p:4x4x4": (64, 1),
    "v6e:16x16": (256, 1),
    "tpu7x:4x4x4": (128, 1),
    "2 * v5e:16x16": (256, 2),
    "v5p:8x16x16": (2048, 1),
}
ROWS = 8
# One model also on a small slice, for its scaling up to 2,048 chips.
SMALLEST = ("t5_1_1_large", "v5p:2x2x4", 16)


def bindings_of(model, devices):
    """Returns the bindings of a plan with the same number of rows per device."""
    full = ["T5Config.remat=full"] if model in FULL_REMAT else []
    shares = (MODELS | ADAPTED)[model]
    windows = NO_WINDOWS if model in ADAPTED else ()
    return [f"Mesh.fsdp={shares}", f"BATCH_SIZE={ROWS * devices}", *full, *windows]


def plans():
    """Yields name, model, slices and bindings of each plan."""
    for slices, (devices, count) in SLICES.items():
        for model in MODELS:
            yield f"{model} on {slices}", model, slices, bindings_of(model, devices * count)
    for slices in ADAPTED_SLICES:
        devices, _ = SLICES[slices]
        for model in ADAPTED:
            yield f"{model} on {slices}", model, slices, bindings_of(model, devices)
    model, slices, devices = SMALLEST
    yield f"{model} on {slices}", model, slices, bindings_of(model, devices)


def make(name, model, slices, bindings):
    """Runs one plan and returns its result."""
    count, _, topology = slices.rpartition(" * ")
    command = [
        *(sys.executable, "-m", "t5lite", "plan", "--gin_file=experiments/pods/run.gin"),
        *(f"--gin_file=gin/models/{model}.gin", f"--topology={topology}", "--json"),
        *(f"--slices={count or 1}", *(f"--gin.{binding}" for binding in bindings)),
    ]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = round(time.perf_counter() - started, 1)
    line = {"plan": name, "model": model, "flags": bindings, "seconds": seconds}
    if done.returncode:
        return line | {"error": done.stderr.strip().splitlines()[-1]}
    return line | json.loads(done.stdout)


def table(lines):
    """Prints the plans in order as a table, with sizes per device."""
    print("| plan | fits | GB | TFLOP, of the formula | GB sent: in its slice, to others | least |")
    print("|---|---|---|---|---|---|")
    order = [name for name, *_ in plans()]
    for line in sorted(lines, key=lambda line: order.index(line["plan"])):
        if "error" in line:
            print(f"| {line['plan']} | {line['error']} | | | | |")
            continue
        memory, bound = line["memory_bytes"], line["bound"]
        size = f"{memory['total'] / 1e9:.1f} of {line['hbm_bytes'] / 1e9:.0f}"
        if not line["fits"]:
            print(
                f"| {line['plan']} | no, {memory['missing'] / 1e9:.1f} GB missing | {size} | | | |"
            )
            continue
        within, between = (
            sum(c["sent_bytes"] for c in line["collectives"] if ("dcn" in c["axes"]) == across)
            for across in (False, True)
        )
        ratio = line["program_flops"] / line["model_flops"]
        print(
            f"| {line['plan']} | yes | {size} | {line['program_flops'] / 1e12:.4g}, {ratio:.3f} | "
            f"{within / 1e9:.1f}, {between / 1e9:.3f} | {bound['seconds']:.3g} s "
            f"({bound['slowest']}), MFU {bound['mfu_fraction']:.0%} |"
        )


def main(_):
    path = pathlib.Path(RESULTS.value)
    if TABLE.value:
        table([json.loads(line) for line in path.open()])
        return
    known = {json.loads(line)["plan"] for line in path.open()} if path.exists() else set()
    left = [p for p in plans() if p[0] not in known and ONLY.value in p[0]]
    with concurrent.futures.ThreadPoolExecutor(PARALLEL.value) as pool:
        for future in concurrent.futures.as_completed([pool.submit(make, *p) for p in left]):
            line = future.result()
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line["plan"], line.get("error") or f"fits: {line['fits']}", flush=True)


if __name__ == "__main__":
    app.run(main)
