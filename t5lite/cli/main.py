"""`t5lite COMMAND FLAGS`: flags, help, and errors on one line."""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags

from t5lite.cli.arguments import parse_arguments
from t5lite.cli.flag_help import COMMAND_WIDTH, flag_lines
from t5lite.cli.flags import command_flags
from t5lite.cli.standard_files import open_standard_files
from t5lite.core.errors import WRONG_PATH, UserError, suggestion
from t5lite.core.import_path import add_own_modules

COMMANDS = {
    "train": "train from a run file; resume from the latest checkpoint",
    "eval": "score one, several or all checkpoints of a run on a whole split",
    "infer": "generate or score the targets of a file of inputs with any checkpoint",
    "plan": "compile the step for a TPU slice or simulated mesh: memory, FLOPs",
    "convert": "convert a checkpoint from or to Hugging Face, or from T5X",
    "launch": "run a command, or a sweep over its bindings, here or on a cluster",
    "report": "print tables and plots of runs and launches, running or finished",
    "inspect": "print the configuration, parameters with their shardings, and FLOPs",
    "data": "build, show or count the data of a run file",
    "vocab": "train a SentencePiece vocabulary on any source",
}

# What `t5lite COMMAND ACTION` does, for commands that take one.
ACTIONS = {
    "data": {
        "build": "builds data sets and token caches in parallel; resumes",
        "show": "prints examples, and rows of the first batch with a colour per example",
        "stats": "prints lengths, truncation, unknown pieces, and how full rows are",
        "list": "lists the data sets built from files in --data_dir or for a run file",
        "prune": "removes those that no run can use, as after a change of their files",
    },
    "launch": {
        "status": "prints the state of each trial of the launch NAME",
        "results": "prints the trials from best to worst",
        "logs": "prints the end of each trial's log; with --trial=N more of one",
        "resume": "runs or submits the trials that have not ended",
        "cancel": "asks running trials to save and stop",
    },
}
# Commands that need a run file unless `--checkpoint` names a run or a checkpoint.
_NEED_RUN_FILE = ("train", "eval", "plan", "inspect", "data", "vocab")

# Exit status of a process that Ctrl-C ended.
INTERRUPTED_EXIT = 130

# Characters of an error: it may show a value from outside.
MAX_MESSAGE = 4000

USAGE = """usage: t5lite COMMAND [--gin_file=FILE]... [--gin.NAME=VALUE]...

Trains, fine-tunes and evaluates T5-style language models.

commands:
{commands}

`t5lite COMMAND --help` lists the flags of a command. --gin.NAME=VALUE binds a
macro such as MODEL_DIR, STEPS, BATCH_SIZE or SEED, or a parameter such as
AdamW.learning_rate; values need no nested quotes.
To begin: t5lite train --gin_file=gin/run/quickstart.gin"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command and ends the process: 0 for success, 2 for a user's mistake.

    42 means that it was preempted, saved its state, and should be restarted; 69 that something is
    unavailable which may become available later; 70 that it stalled; 130 that it was interrupted.
    """
    open_standard_files()
    arguments = list(sys.argv[1:] if argv is None else argv)
    for argument in arguments:
        _check_utf8(argument)
    command = arguments.pop(0) if arguments else "--help"
    launched: list[str] = []
    if command == "launch" and "--" in arguments:
        # The words after -- belong to the launched command.
        split = arguments.index("--")
        launched = arguments[split + 1 :]
        del arguments[split:]
    if command in ("-h", "-help", "--help", "help"):
        _run(_print_usage)
        sys.exit(0)
    if command not in COMMANDS:
        _fail(f"unknown command {command!r}; {suggestion(command, COMMANDS)}")
    # A user's own modules may be in the current directory.
    add_own_modules(os.getcwd())
    # Must be set before JAX is loaded. A user's own value is kept.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        values, words, bindings = parse_arguments(command, arguments)
    except UserError as error:
        _fail(str(error))
    if values.help:
        _run(lambda: _print_help(command, arguments))
        sys.exit(0)
    if bindings and command in ("launch", "report"):
        is_launch = command == "launch"
        remedy = " before --; bind it after --, beside the --gin_file" if is_launch else ""
        _fail(f"{command} takes no bindings, got --gin.{bindings[0]}{remedy}")
    if argv is None and (command in ("train", "eval", "infer") or _is_vectorized(command, values)):
        _with_huge_pages()
    if command == "launch":
        _run(lambda: _command(command)(values, words, launched))
    elif command == "report":
        _run(lambda: _command(command)(values, words))
    else:
        _check_words(command, words, values)
        _run(lambda: _command(command)(*words, values, bindings))


def _command(command: str) -> Callable[..., None]:
    """Returns the function of a command, whose module is imported only now."""
    module = importlib.import_module(f"t5lite.cli.{command}")
    function: Callable[..., None] = getattr(module, f"{command}_command")
    return function


def _is_vectorized(command: str, values: flags.FlagValues) -> bool:
    return command == "launch" and bool(values.vectorized)


def _check_utf8(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError:
        shown = argument.encode(errors="surrogateescape")
        _fail(f"arguments must be UTF-8, got {shown!r}; rename the file or set a UTF-8 locale")


def _check_words(command: str, words: Sequence[str], values: flags.FlagValues) -> None:
    """Fails unless a command has the words, the flags and the run file that it reads."""
    actions = ACTIONS.get(command, {})
    if actions and (len(words) != 1 or words[0] not in actions):
        _fail(f"{command} takes one of {', '.join(actions)}, got {' '.join(words) or 'none'}")
    if words and not actions:
        _fail(f"{command} takes flags only, got {words[0]!r}")
    for flag in command_flags(command):
        if values[flag.name].present and flag.actions and words[0] not in flag.actions:
            takers = " and ".join(f"{command} {action}" for action in flag.actions)
            _fail(f"--{flag.name} is for {takers}, got {command} {words[0]}")
    has_checkpoint = "checkpoint" in values and values.checkpoint not in (None, "latest")
    takes_directory = words in (["list"], ["prune"])
    if command in _NEED_RUN_FILE and not (values.gin_file or has_checkpoint or takes_directory):
        run_file = "vocab" if command == "vocab" else "quickstart"
        hint = f"try --gin_file=gin/run/{run_file}.gin"
        if "checkpoint" in values:
            hint = "name a run by --checkpoint=MODEL_DIR, or its run file by --gin_file"
        _fail(f"{command} needs a run file; {hint}")


def _run(work: Callable[[], None]) -> None:
    """Runs a command and turns its errors into one line and an exit status."""
    from t5lite.core.errors import Unavailable
    from t5lite.core.run_directory import RESTART_EXIT, UNAVAILABLE_EXIT, Preempted

    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed it.
        os._exit(1)
    except Unavailable as error:
        _fail(str(error), UNAVAILABLE_EXIT)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        status = 2 if isinstance(error, WRONG_PATH) else UNAVAILABLE_EXIT
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", status)
    except RuntimeError as error:
        # How pathlib rejects `~nosuchuser`.
        if str(error) != "Could not determine home directory.":
            raise
        _fail("a path names the home directory of an unknown user; name the directory itself")
    except Preempted as stop:
        print(f"t5lite: {stop}", file=sys.stderr)
        sys.exit(RESTART_EXIT)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED_EXIT)


def _with_huge_pages() -> None:
    """Restarts this process with huge pages for malloc; Linux only.

    XLA's programs for CPUs allocate and free their memory in every step, and page faults of 4 kB
    take a quarter to a half of the step. glibc reads its tunables only when a process starts.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def _print_usage() -> None:
    lines = [f"  {name.ljust(COMMAND_WIDTH)}{text}" for name, text in COMMANDS.items()]
    print(USAGE.format(commands="\n".join(lines)))


def _print_help(command: str, arguments: Sequence[str]) -> None:
    actions = ACTIONS.get(command, {})
    action = f" {'|'.join(actions)}" if actions else ""
    text = COMMANDS[command]
    lines = [f"usage: t5lite {command}{action} FLAGS", "", f"{text[0].upper()}{text[1:]}.", ""]
    if command == "launch":
        lines[:1] = [
            "usage: t5lite launch --on=ENGINE --name=NAME FLAGS -- [train|eval|infer] FLAGS",
            f"       t5lite launch {'|'.join(actions)} NAME",
        ]
    if command == "report":
        lines[0] = "usage: t5lite report DIR... FLAGS"
    if actions:
        lines += [*(f"  {name.ljust(8)}{text}" for name, text in actions.items()), ""]
    if command == "launch":
        from t5lite.cli.columns import terminal_width
        from t5lite.cli.launch_flags import launch_flag_lines, outside_engine

        width = terminal_width()
        lines += launch_flag_lines(outside_engine(arguments), width=width)
    else:
        lines += flag_lines(command)
    print("\n".join(lines))


def _fail(message: str, status: int = 2) -> NoReturn:
    print(f"t5lite: {(message.splitlines() or [''])[0][:MAX_MESSAGE]}", file=sys.stderr)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    # At once: a failed checkpoint leaves tasks of Orbax behind, which would print tracebacks during
    # the shutdown of the interpreter. All files are closed by now.
    os._exit(status)
