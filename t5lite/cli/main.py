"""`t5lite COMMAND FLAGS`: flags, help, and errors on one line."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags

COMMANDS = {
    "train": "train from a run file; resumes by itself from what is in MODEL_DIR",
    "eval": "score one, several or all checkpoints of a run on a whole split",
    "infer": "write targets for, or score, the objects of a file with any checkpoint",
    "plan": "compile a run's step for a TPU slice or a simulated mesh: memory, FLOPs, traffic",
    "convert": "convert a checkpoint from or to Hugging Face, or from T5X",
    "launch": "run a command, or a sweep over its bindings, here or on a cluster",
    "report": "tables and plots over runs and launches, also while they go on",
    "inspect": "print the model: every parameter, where it lives and how it begins; FLOPs",
    "data": "build, show or count the data of a run file",
    "vocab": "train a SentencePiece vocabulary on any source",
}

# What `t5lite COMMAND ACTION` does, for commands that take one.
ACTIONS = {
    "data": {
        "build": "makes data sets and token caches ready, in parallel, going on where it stopped",
        "show": "prints examples, and rows of the first batch coloured by example",
        "stats": "prints lengths, tokens in an epoch, what is cut, and how full rows are",
    },
    "launch": {
        "status": "prints what has become of the trials of the launch NAME",
        "results": "prints them from best to worst",
        "logs": "prints the ends of their logs; with --trial more of one",
        "resume": "runs or submits what has not ended",
        "cancel": "asks what runs to save and stop",
    },
}

USAGE = """usage: t5lite COMMAND [--gin_file=FILE]... [--gin.NAME=VALUE]...

Trains, fine-tunes and evaluates T5-style language models.

commands:
{commands}

`t5lite COMMAND --help` lists the flags of a command. --gin.NAME=VALUE binds a macro such as
MODEL_DIR, STEPS, BATCH_SIZE or SEED, or a parameter such as AdamW.learning_rate; it needs no
nested quotes. A first run: t5lite train --gin_file=gin/run/quickstart.gin"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command and ends the process: 0 for success, 2 for a user's mistake.

    With 42 it was asked to stop, saved, and is to be started again; with 69 something is lacking
    that may be there later.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    launched: list[str] = []
    if command == "launch" and "--" in arguments:
        # What stands behind is the launched command's.
        place = arguments.index("--")
        arguments, launched = arguments[:place], arguments[place + 1 :]
    if command in ("-h", "-help", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
        print(USAGE.format(commands="\n".join(lines)))
        sys.exit(0)
    if command not in COMMANDS:
        from t5lite.core.errors import suggestion

        _fail(f"there is no command {command!r}; {suggestion(command, COMMANDS)}")
    # Steps and metrics of the user's own are looked for beside the files that name them.
    sys.path.append(os.getcwd())
    # Quiet before JAX is loaded; a user's own choice stands.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    bindings = [a[len("--gin.") :] for a in arguments if a.startswith("--gin.")]
    values = _flags(command)
    try:
        rest = values(["t5lite", *(a for a in arguments if not a.startswith("--gin."))])
    except flags.Error as error:
        _fail(str(error).replace("\n", " "))
    if values.help:
        _print_help(command, values)
        sys.exit(0)
    if command == "launch":
        if values.vectorized and argv is None:
            _with_huge_pages()
        _run(lambda: importlib.import_module("t5lite.cli.launch").run(values, rest[1:], launched))
        return
    if command == "report":
        _run(lambda: importlib.import_module("t5lite.cli.report").run(values, rest[1:]))
        return
    actions = ACTIONS.get(command, {})
    words = rest[1:]
    if actions and (len(words) != 1 or words[0] not in actions):
        _fail(f"{command} takes one of {', '.join(actions)}, got {' '.join(words) or 'none'}")
    if words and not actions:
        _fail(f"{command} takes flags only, got {words[0]!r}")
    has_checkpoint = command == "inspect" and values.checkpoint
    if not values.gin_file and command not in ("convert", "infer") and not has_checkpoint:
        run_file = "vocab" if command == "vocab" else "quickstart"
        _fail(f"{command} needs a run file; try --gin_file=gin/run/{run_file}.gin")
    if argv is None and command in ("train", "eval", "infer"):
        _with_huge_pages()
    module = f"t5lite.cli.{command}"
    _run(lambda: importlib.import_module(module).run(*words, values, bindings))


def _run(work: Callable[[], None]) -> None:
    """Does a command's work and turns its errors into a line and an exit status."""
    from t5lite.core.errors import Unavailable, UserError
    from t5lite.core.run_directory import RESTART_EXIT, UNAVAILABLE_EXIT, Preempted

    try:
        work()
    except Unavailable as error:
        _fail(str(error), UNAVAILABLE_EXIT)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        # A wrong path is the user's; a full disk or a network that fails is not.
        wrong = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
        status = 2 if isinstance(error, wrong) else UNAVAILABLE_EXIT
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", status)
    except Preempted as stop:
        print(f"t5lite: {stop}", file=sys.stderr)
        sys.exit(RESTART_EXIT)
    except KeyboardInterrupt:
        print("t5lite: interrupted", file=sys.stderr)
        sys.exit(130)


def _with_huge_pages() -> None:
    """Starts this process once more, with huge pages for what malloc gives; Linux only.

    Programs of XLA for CPUs take and give back their memory at every step, and page faults of 4 kB
    each cost a quarter to a half of it. glibc can be told at the start of a process only.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def _flags(command: str) -> flags.FlagValues:
    values = flags.FlagValues()
    if command == "launch":
        _define_launch_flags(values)
        return values
    if command == "report":
        _define_report_flags(values)
        return values
    flags.DEFINE_multi_string(
        "gin_file", [], "A run file; may be repeated, later ones win.", flag_values=values
    )
    flags.DEFINE_list(
        "gin_search_paths",
        [],
        "Folders, with commas between them, where gin files are looked for.",
        flag_values=values,
    )
    flags.DEFINE_boolean("help", False, "Shows this.", short_name="h", flag_values=values)
    if command == "inspect":
        flags.DEFINE_string(
            "checkpoint",
            None,
            "A MODEL_DIR or checkpoints/STEP whose model is printed; no run file is needed.",
            flag_values=values,
        )
    if command == "plan":
        _define_plan_flags(values)
    if command in ("eval", "infer"):
        flags.DEFINE_string(
            "checkpoint",
            "latest",
            "Which: latest (the default), best, all, steps such as 1000,2000, or a folder: a "
            "MODEL_DIR, for its latest, or DIR/checkpoints/1000.",
            flag_values=values,
        )
        flags.DEFINE_integer(
            "average",
            1,
            "The mean of the parameters of so many checkpoints that end with it.",
            lower_bound=1,
            flag_values=values,
        )
    if command == "infer":
        for name, text in {
            "input": "Objects with a field `inputs` (and `targets` to score) in .jsonl, or lines "
            "in .txt.",
            "output": "A .jsonl file that is not there yet: the objects with their results.",
        }.items():
            flags.DEFINE_string(name, None, text, flag_values=values)
        flags.DEFINE_enum(
            "mode",
            "predict",
            ["predict", "score"],
            "Whether targets are written, or given ones scored.",
            flag_values=values,
        )
    if command == "eval":
        flags.DEFINE_boolean(
            "watch",
            False,
            "Scores every checkpoint of MODEL_DIR once, as they come, until the run's last step.",
            flag_values=values,
        )
    if command == "convert":
        for name, text in {
            "input": "The checkpoint: a folder of Hugging Face, T5X's checkpoint_STEP, or t5lite's "
            "MODEL_DIR or checkpoints/STEP.",
            "output": "A folder that is not there yet.",
        }.items():
            flags.DEFINE_string(name, None, text, flag_values=values)
        flags.DEFINE_enum(
            "to", "t5lite", ["t5lite", "huggingface"], "Whose format.", flag_values=values
        )
    if command == "data":
        flags.DEFINE_string("split", "train", "show and stats: of the source.", flag_values=values)
        flags.DEFINE_integer(
            "workers",
            None,
            "build: processes; one a processor if not given.",
            lower_bound=1,
            flag_values=values,
        )
        flags.DEFINE_integer(
            "count", 3, "show: examples of each task, and rows.", lower_bound=0, flag_values=values
        )
        flags.DEFINE_integer(
            "records",
            10000,
            "stats: so many of each task are looked at, from all over the split.",
            lower_bound=1,
            flag_values=values,
        )
    if command in ("eval", "data", "inspect", "plan"):
        flags.DEFINE_boolean(
            "json", False, "Prints one JSON document instead of a table.", flag_values=values
        )
    return values


def _define_launch_flags(values: flags.FlagValues) -> None:
    texts = {
        "on": "Where: local, slurm or slurm:PARTITION, tpu:v5e-256 and the like, or gke:tpu7x-64.",
        "name": "The launch's; what it writes is in --dir/NAME.",
        "method": "How values are chosen: grid, random, quasi or tpe; a grid where it can be one, "
        "else quasi-random.",
        "prune": "Stops trials that do badly early: asha or hyperband.",
        "minimize": "The metric that counts; cross_entropy_nats_per_token of the evaluation if not "
        "given. SPLIT/NAME is of another split.",
        "maximize": "Or one that is better the higher.",
        "time_limit": "Slurm: of a job, as in 12:00:00; it saves two minutes before, and goes on.",
        "zone": "TPU: Google's, as in us-east5-a; gcloud's own if not given.",
        "runtime_version": "TPU: what machines boot with; what Google says for the kind of TPU.",
        "setup": "TPU, GKE: a shell script that makes a worker ready, in place of launch/setup.sh: "
        "it may mount, export and install.",
        "wheel": "TPU, GKE: a wheel of t5lite; one of this checkout if not given.",
        "image": "GKE: a container image with Python, JAX and what t5lite needs.",
        "claim": "GKE: a PersistentVolumeClaim that pods mount at --dir.",
        "queue": "GKE: of Kueue.",
    }
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    numbers = {
        "trials": "How many, where the method draws them.",
        "parallel": "Trials at a time; all of them on Slurm and GKE, else 1, if not given.",
        "vectorized": "Here: so many trials train in one program; they may differ in numbers only.",
        "nodes": "Slurm: for each trial; 1 if not given.",
        "processes": "Of JAX, for each trial; on Slurm for each node; 1, or one a GPU.",
        "gpus": "Slurm: for each node.",
        "slices": "TPU, GKE: for each trial, with the data-centre network between them.",
    }
    for name, text in numbers.items():
        flags.DEFINE_integer(name, None, text, lower_bound=1, flag_values=values)
    flags.DEFINE_string("dir", "runs", "The folder of launches.", flag_values=values)
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "NAME=VALUES: a gin binding and a list, range(3), uniform(0.0, 0.3) or log(1e-4, 1e-2), "
        "with a third number for the points of a grid; may be repeated.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "options",
        [],
        "A further line of Slurm's batch file, or a flag of gcloud's queued-resources create or of "
        "kubectl.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "ssh_options",
        [],
        "TPU: a further flag of gcloud's ssh and scp, such as --internal-ip.",
        flag_values=values,
    )
    flags.DEFINE_boolean("spot", False, "TPU, GKE: may be preempted.", flag_values=values)
    flags.DEFINE_boolean("reserved", False, "TPU: from a reservation.", flag_values=values)
    flags.DEFINE_string(
        "sweep_file",
        None,
        "Or a gin file that binds sweep.values, or sweep.listed for the trials one by one.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed", None, "Of values that are drawn; 0 if not given.", flag_values=values
    )
    flags.DEFINE_integer(
        "max_failures",
        3,
        "Restarts of a trial after a crash; those after a preemption are free.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer("trial", None, "logs: of this one.", lower_bound=0, flag_values=values)
    flags.DEFINE_boolean(
        "dry_run", False, "Prints what would be run or submitted, checked.", flag_values=values
    )
    flags.DEFINE_boolean("json", False, "status, results: one JSON document.", flag_values=values)
    flags.DEFINE_boolean("help", False, "Shows this.", short_name="h", flag_values=values)


def _define_report_flags(values: flags.FlagValues) -> None:
    texts = {
        "minimize": "The metric that counts; the launch's own, or cross_entropy_nats_per_token of "
        "the evaluation, if not given. SPLIT/NAME is of another split.",
        "maximize": "Or one that is better the higher.",
        "output": "A folder for report.html, which needs no other file, table.csv, table.md and "
        "the plots.",
    }
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_boolean("help", False, "Shows this.", short_name="h", flag_values=values)


def _define_plan_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "topology",
        None,
        "A TPU slice by kind and shape in chips, such as v5e:16x16; cpu:8 for simulated devices.",
        flag_values=values,
    )
    flags.DEFINE_integer("slices", 1, "Slices of that shape.", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean(
        "suggest",
        False,
        "Looks for the mesh, remat policy and microbatches with the least bound that fit.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tries", 4, "suggest: so many are compiled.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "hlo", None, "A file that the compiled program's text is written to.", flag_values=values
    )


def _print_help(command: str, values: flags.FlagValues) -> None:
    actions = ACTIONS.get(command, {})
    action = f" {'|'.join(actions)}" if actions else ""
    lines = [f"usage: t5lite {command}{action} FLAGS", "", f"{COMMANDS[command]}.", ""]
    if command == "launch":
        lines[:1] = [
            "usage: t5lite launch --on=ENGINE --name=NAME FLAGS -- [train|eval|infer] ITS FLAGS",
            f"       t5lite launch {'|'.join(actions)} NAME",
        ]
    if command == "report":
        lines[0] = "usage: t5lite report DIR... FLAGS"
    if actions:
        lines += [*(f"  {name.ljust(8)}{text}" for name, text in actions.items()), ""]
    lines.append("flags:")
    # Those defined below; absl has some of its own. What it adds to a help is behind a semicolon.
    own = values.get_flags_for_module(__name__)
    texts = {f"--{flag.name}": (flag.help or "").split(";\n")[0] for flag in own}
    if command not in ("launch", "report"):
        texts["--gin.NAME=VALUE"] = "Binds a macro or a parameter; may be repeated, later ones win."
    width = max(map(len, texts))
    lines += [f"  {name.ljust(width)}  {text}" for name, text in texts.items()]
    print("\n".join(lines))


def _fail(message: str, status: int = 2) -> NoReturn:
    # An error that passed through gin carries gin's remarks on further lines.
    print(f"t5lite: {message.splitlines()[0]}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: a checkpoint that failed leaves tasks of Orbax behind, which would print tracebacks
    # while the interpreter shuts down. All files are closed by now.
    os._exit(status)
