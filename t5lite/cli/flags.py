"""The flags of every command, in the groups in which `--help` lists them."""

from collections.abc import Sequence

from absl import flags

from t5lite.cli.command_flag import COMMON_FLAGS, CommandFlag

_RUN = ("train", "eval", "infer", "plan", "inspect", "data", "vocab", "convert")


# `--gin.NAME=VALUE` is parsed before absl sees it; `--help` lists it here.
BINDING_FLAG = "gin.NAME=VALUE"
_FLAGS = (
    CommandFlag(
        name="gin_file",
        help="Run file; may be repeated, later files win.",
        commands=_RUN,
        group=COMMON_FLAGS,
        kind="multi",
        default=(),
    ),
    CommandFlag(
        name="gin_search_paths",
        help="Directories to search for gin files, separated by commas.",
        commands=_RUN,
        group=COMMON_FLAGS,
        kind=list,
        default=(),
    ),
    CommandFlag(
        name="help",
        help="Print this help.",
        commands=(*_RUN, "report"),
        group=COMMON_FLAGS,
        kind=bool,
        default=False,
    ),
    CommandFlag(
        name="checkpoint",
        help="Print the model of this run, checkpoint or Hugging Face folder; no run file is "
        "needed.",
        commands=("inspect",),
        group="model",
    ),
    CommandFlag(
        name="verify",
        help="Read all of --checkpoint, or all checkpoints of a MODEL_DIR, and compare their "
        "checksums.",
        commands=("inspect",),
        group="model",
        kind=bool,
        default=False,
    ),
    CommandFlag(
        name="verify_determinism",
        help="Instead of training, take this many of the next steps three times, once with a save "
        "and restore between, and compare all bits.",
        commands=("train",),
        group="checks",
        kind=int,
        minimum=1,
    ),
    CommandFlag(
        name="checkpoint",
        help="Checkpoint of the run file: latest, best, a step, or for eval also all or steps such "
        "as 1000,2000. Or any other: a MODEL_DIR for its latest, MODEL_DIR:best, "
        "MODEL_DIR/checkpoints/STEP, or a Hugging Face folder",
        commands=("eval", "infer"),
        group="checkpoints",
        default="latest",
    ),
    CommandFlag(
        name="average",
        help="Average the parameters of this many checkpoints, ending with the chosen one.",
        commands=("eval", "infer"),
        group="checkpoints",
        kind=int,
        default=1,
        minimum=1,
    ),
    CommandFlag(
        name="parameters",
        help="Which parameters of a checkpoint: their moving average, or their values after the "
        "step; if not given, the average where train.moving_average saved one.",
        commands=("eval", "infer", "convert"),
        group="checkpoints",
        kind=("average", "trained"),
    ),
    CommandFlag(
        name="base",
        help="New location of the base of a checkpoint that holds an adapter alone, or for convert "
        "the base of PEFT's adapter: a MODEL_DIR or MODEL_DIR/checkpoints/STEP.",
        commands=("eval", "infer", "inspect", "convert"),
        group="base",
    ),
    CommandFlag(
        name="adapter",
        help="NAME=CHECKPOINT of an adapter, repeated for several over one base. The field "
        "`adapter` of each object names its own; without it, the base answers, or the only "
        "adapter.",
        commands=("infer",),
        group="checkpoints",
        kind="multi",
        default=(),
    ),
    CommandFlag(
        name="watch",
        help="Score every checkpoint of MODEL_DIR once, as it appears, until the run's last step.",
        commands=("eval",),
        group="checkpoints",
        kind=bool,
        default=False,
    ),
    CommandFlag(
        name="input",
        help="JSONL file of objects with a field `inputs` (and `targets` to score), or text file "
        "of lines.",
        commands=("infer",),
        group="input and output",
    ),
    CommandFlag(
        name="output",
        help="New JSONL file of the objects with their results; - is the standard output.",
        commands=("infer",),
        group="input and output",
    ),
    CommandFlag(
        name="mode",
        help="Generate targets, or score given ones.",
        commands=("infer",),
        group="input and output",
        kind=("predict", "score"),
        default="predict",
    ),
    CommandFlag(
        name="input",
        help="Checkpoint: a Hugging Face folder, T5X's checkpoint_STEP, an adapter of PEFT, or a "
        "MODEL_DIR, MODEL_DIR:best or MODEL_DIR/checkpoints/STEP of t5lite.",
        commands=("convert",),
        group="input and output",
    ),
    CommandFlag(
        name="output", help="New directory.", commands=("convert",), group="input and output"
    ),
    CommandFlag(
        name="to",
        help="Format of the output.",
        commands=("convert",),
        group="input and output",
        kind=("t5lite", "huggingface", "peft"),
        default="t5lite",
    ),
    CommandFlag(
        name="adapt",
        help="Make an encoder-decoder from a decoder-only model, with an embedding for each stack "
        "and cross-attention (T5Gemma), or with one embedding and no cross-attention of its own "
        "(T5Gemma 2)",
        commands=("convert",),
        group="adaptation",
        kind=("encoder_decoder", "merged_encoder_decoder"),
    ),
    CommandFlag(
        name="adapt_encoder",
        help="Decoder-only checkpoint that the encoder is made from; if not given, --input.",
        commands=("convert",),
        group="adaptation",
    ),
    CommandFlag(
        name="topology",
        help="TPU slice by kind and shape in chips, such as v5e:16x16; cpu:8 for simulated "
        "devices.",
        commands=("plan",),
        group="devices",
    ),
    CommandFlag(
        name="slices",
        help="Number of slices of that shape.",
        commands=("plan",),
        group="devices",
        kind=int,
        default=1,
        minimum=1,
    ),
    CommandFlag(
        name="suggest",
        help="Search for the mesh, remat policy and microbatches that fit with the least bound.",
        commands=("plan",),
        group="search",
        kind=bool,
        default=False,
    ),
    CommandFlag(
        name="tries",
        help="Number of choices that --suggest compiles.",
        commands=("plan",),
        group="search",
        kind=int,
        default=4,
        minimum=1,
    ),
    CommandFlag(
        name="hlo",
        help="File for the text of the compiled program.",
        commands=("plan",),
        group="output",
    ),
    CommandFlag(
        name="workers",
        help="Number of processes; one per processor if not given.",
        commands=("data",),
        actions=("build",),
        group="build",
        kind=int,
        minimum=1,
    ),
    CommandFlag(
        name="data_dir",
        help="Directory of data sets; TFDS_DATA_DIR or ~/tensorflow_datasets if not given.",
        commands=("data",),
        actions=("list", "prune"),
        group="list and prune",
    ),
    CommandFlag(
        name="split",
        help="Split of the source.",
        commands=("data",),
        actions=("show", "stats"),
        group="show and stats",
        default="train",
    ),
    CommandFlag(
        name="count",
        help="show: number of examples of each task, and of rows.",
        commands=("data",),
        actions=("show",),
        group="show and stats",
        kind=int,
        default=3,
        minimum=0,
    ),
    CommandFlag(
        name="records",
        help="stats: number of records of each task to read, evenly spaced over the split.",
        commands=("data",),
        actions=("stats",),
        group="show and stats",
        kind=int,
        default=10000,
        minimum=1,
    ),
    CommandFlag(
        name="json",
        help="stats: print one JSON document instead of a table.",
        commands=("data",),
        actions=("stats",),
        group="show and stats",
        kind=bool,
        default=False,
    ),
    CommandFlag(
        name="json",
        help="Print one JSON document instead of a table.",
        commands=("eval", "inspect", "plan"),
        group="output",
        kind=bool,
        default=False,
    ),
    CommandFlag(
        name="minimize",
        help="Metric to minimize; if not given, that of the launch, or the evaluation's "
        "cross_entropy_nats_per_token. SPLIT/NAME is a metric of another split.",
        commands=("report",),
        group="ranking",
    ),
    CommandFlag(
        name="maximize",
        help="Metric to maximize instead.",
        commands=("report",),
        group="ranking",
    ),
    CommandFlag(
        name="output",
        help="Folder for report.html, a single self-contained page, table.csv, table.md and the "
        "plots.",
        commands=("report",),
        group="output",
    ),
)


def command_flags(command: str) -> list[CommandFlag]:
    """Returns the flags of a command other than `launch`."""
    return [flag for flag in _FLAGS if command in flag.commands]


def flags_of(command: str, arguments: Sequence[str] = ()) -> flags.FlagValues:
    """Returns the flags of a command, yet to be parsed.

    Args:
        arguments: of the command; an engine of the user's own in them adds its flags.

    Raises:
        UserError: if that engine cannot be imported.
    """
    values = flags.FlagValues()
    if command == "launch":
        from t5lite.cli.launch_flags import define_launch_flags, outside_engine

        define_launch_flags(values, outside_engine(arguments))
        return values
    for flag in command_flags(command):
        flag.define(values)
    return values
