"""`t5lite COMMAND FLAGS`: flags, help, and errors on one line."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags

from t5lite.cli.flags import flags_of
from t5lite.core.errors import UserError

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
        "stats": "prints lengths, truncation, unknown pieces, and how full rows are",
        "list": "lists the data sets built from files, in --data_dir or those of a run file",
        "prune": "removes those that no run can use any more, as when their files have changed",
    },
    "launch": {
        "status": "prints the state of each trial of the launch NAME",
        "results": "prints the trials from best to worst",
        "logs": "prints the end of each trial's log; with --trial=N more of one",
        "resume": "runs or submits the trials that have not ended",
        "cancel": "asks running trials to save and stop",
    },
}

# A wrong path is the user's mistake; a full disk or a network that fails is not.
WRONG_PATH = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

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
    try:
        values = flags_of(command, arguments)
        rest = values(["t5lite", *(a for a in arguments if not a.startswith("--gin."))])
    except (flags.Error, UserError) as error:
        _fail(str(error).replace("\n", " "))
    if values.help:
        _print_help(command, values, arguments)
        sys.exit(0)
    if command == "launch":
        if values.vectorized and argv is None:
            _with_huge_pages()
        launch = importlib.import_module
        _run(lambda: launch("t5lite.cli.launch").launch_command(values, rest[1:], launched))
        return
    if command == "report":
        _run(lambda: importlib.import_module("t5lite.cli.report").report_command(values, rest[1:]))
        return
    actions = ACTIONS.get(command, {})
    words = rest[1:]
    if actions and (len(words) != 1 or words[0] not in actions):
        _fail(f"{command} takes one of {', '.join(actions)}, got {' '.join(words) or 'none'}")
    if words and not actions:
        _fail(f"{command} takes flags only, got {words[0]!r}")
    has_checkpoint = command == "inspect" and values.checkpoint
    has_folder = words in (["list"], ["prune"])
    needs_run_file = command not in ("convert", "infer") and not (has_checkpoint or has_folder)
    if not values.gin_file and needs_run_file:
        run_file = "vocab" if command == "vocab" else "quickstart"
        _fail(f"{command} needs a run file; try --gin_file=gin/run/{run_file}.gin")
    if argv is None and command in ("train", "eval", "infer"):
        _with_huge_pages()
    module = f"t5lite.cli.{command}"
    _run(lambda: importlib.import_module(module).run(*words, values, bindings))


def _run(work: Callable[[], None]) -> None:
    """Does a command's work and turns its errors into a line and an exit status."""
    from t5lite.core.errors import Unavailable
    from t5lite.core.run_directory import RESTART_EXIT, UNAVAILABLE_EXIT, Preempted

    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads what is printed, such as `head`, has enough.
        os._exit(1)
    except Unavailable as error:
        _fail(str(error), UNAVAILABLE_EXIT)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        status = 2 if isinstance(error, WRONG_PATH) else UNAVAILABLE_EXIT
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


def _print_help(command: str, values: flags.FlagValues, arguments: Sequence[str]) -> None:
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
    if command == "launch":
        from t5lite.cli.columns import terminal_width
        from t5lite.cli.launch_flags import launch_flag_lines, outside_engine

        engine = outside_engine(arguments)
        print("\n".join([*lines[:-1], *launch_flag_lines(values, engine, width=terminal_width())]))
        return
    lines.append("flags:")
    # Those of the command; absl has some of its own. What it adds to a help is behind a semicolon.
    own = values.get_flags_for_module(flags_of.__module__)
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
