"""What the manual states about commands, flags, bindings, files and links holds."""

import inspect
import os
import pathlib
import re

import pytest
import sentencepiece
from absl import flags

from t5lite import configurables
from t5lite.cli.flags import flags_of
from t5lite.cli.main import ACTIONS, COMMANDS, INTERRUPTED_EXIT
from t5lite.core.run_directory import OUTCOMES, RESTART_EXIT, STALLED_EXIT, UNAVAILABLE_EXIT
from t5lite.public_names import TABLE
from tests.docs.pages import GIN_FILES, MANUAL, PAGES, ROOT, anchors, blocks, commands, links

# Words of a command that stand for something the reader fills in.
PLACEHOLDERS = {"FLAGS", "...", "COMMAND", "DIR...", "ITS"}
ROOTS_OF = {
    "train": ("train", "evaluate"),
    "eval": ("train", "evaluate"),
    "infer": ("infer",),
    "convert": ("convert",),
    "vocab": ("vocab",),
}


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def documented() -> list[tuple[str, list[str]]]:
    """Every command of the pages and gin headers, with the page that shows it."""
    found = [(name_of(path), words) for path in [*PAGES, *GIN_FILES] for words in commands(path)]
    return [(page, [w for w in words if w not in PLACEHOLDERS]) for page, words in found]


COMMAND_CASES = [
    pytest.param(words, id=f"{page}: {' '.join(words)}"[:120])
    for page, words in documented()
    # Code that a page defines is executed in another test.
    if words and words[0] in COMMANDS and not any("my_" in word for word in words)
]


def parts_of(words: list[str]) -> list[tuple[str, list[str]]]:
    """A command and its flags; of a launch also the command that it runs."""
    command, *rest = words
    if command != "launch" or "--" not in rest:
        return [(command, rest)]
    position = rest.index("--")
    launched = rest[position + 1 :]
    inner = launched[0] if launched and launched[0] in COMMANDS else "train"
    inner_flags = [word for word in launched if word.startswith("-")]
    return [(command, rest[:position]), (inner, inner_flags)]


def check_binding(binding: str) -> None:
    """Raises if a binding names no parameter; macros are in capitals."""
    name = binding.rpartition("/")[2]
    if re.fullmatch(r"[A-Z_]+", name):
        return
    owner, _, parameter = name.rpartition(".")
    if ":" in owner:
        # Code that a page defines is executed in another test.
        return
    assert owner in TABLE, f"{binding}: no gin name {owner!r}"
    assert parameter in inspect.signature(TABLE[owner]).parameters, binding


@pytest.fixture(scope="module")
def small_vocabulary(text_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SentencePiece model that fits the smallest model of a documented command."""
    prefix = tmp_path_factory.mktemp("vocabulary") / "small"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text_file),
        model_prefix=str(prefix),
        vocab_size=90,
        # Of classes, which must have different tokens.
        required_chars="0123456789-_BIO",
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    return f"{prefix}.model"


@pytest.mark.parametrize("words", COMMAND_CASES)
def test_flags_and_bindings_of_documented_commands_exist(words: list[str]) -> None:
    for command, rest in parts_of(words):
        plain = [word for word in rest if not word.startswith("--gin.")]
        try:
            arguments = flags_of(command)(["t5lite", *plain])[1:]
        except flags.Error as error:
            pytest.fail(f"t5lite {command}: {error}")
        if command in ACTIONS and command != "launch":
            assert arguments[0] in ACTIONS[command]
        for word in rest:
            if word.startswith("--gin."):
                check_binding(word.removeprefix("--gin.").partition("=")[0])
        for word in plain:
            name, _, value = word.partition("=")
            if name == "--sweep":
                check_binding(value.partition("=")[0])
            if name in ("--gin_file", "--sweep_file") and value.startswith(("gin/", "experiments")):
                assert (ROOT / value).exists(), word


@pytest.mark.parametrize(
    "words",
    [
        case
        for case in COMMAND_CASES
        for command, rest in parts_of(case.values[0])[-1:]
        if command in ("train", "plan", "inspect", "vocab", "data")
        and any(w.startswith("--gin_file=") for w in rest)
        and all((ROOT / w[11:]).exists() for w in rest if w.startswith("--gin_file="))
    ],
)
def test_documented_commands_bind_and_build(
    words: list[str], small_vocabulary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a vocabulary of the test in place of the reader's."""
    monkeypatch.chdir(ROOT)
    command, rest = parts_of(words)[-1]
    files = [w.partition("=")[2] for w in rest if w.startswith("--gin_file=")]
    bindings = [w.removeprefix("--gin.") for w in rest if w.startswith("--gin.")]
    if command != "vocab":
        text = "".join((ROOT / file).read_text() for file in files)
        if "VOCABULARY" in text or "pairs.gin" in text or "text_files.gin" in text:
            bindings = [b for b in bindings if not b.startswith("VOCABULARY=")]
            bindings.append(f"VOCABULARY={small_vocabulary}")
    configurables.load(files, bindings, [], *ROOTS_OF.get(command, ("train",)))


@pytest.mark.parametrize("path", MANUAL, ids=name_of)
def test_names_in_gin_fragments_exist(path: pathlib.Path) -> None:
    for block in blocks(path):
        if block.language == "gin" and not block.file:
            for name in re.findall(r"^([\w./]+) *=", block.text, re.MULTILINE):
                check_binding(name)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_resolve(path: pathlib.Path) -> None:
    for link in links(path):
        target, _, anchor = link.partition("#")
        file = pathlib.Path(os.path.normpath(path.parent / target)) if target else path
        assert file.exists(), link
        if anchor:
            assert anchor in anchors(file), link


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_that_pages_name_exist(path: pathlib.Path) -> None:
    """Code spans with a path of the repository, such as `t5lite/core/errors.py`."""
    text = path.read_text()
    named = re.findall(r"`((?:t5lite|tests|gin|docs|launch)/[\w./-]+\.(?:py|gin|md|sh))`", text)
    if path.name != "CHANGELOG.md":
        assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", MANUAL, ids=name_of)
def test_python_of_the_manual_is_executed(path: pathlib.Path) -> None:
    """A Python block is a file that commands use, or is executed by itself."""
    assert not [
        block.text
        for block in blocks(path)
        if block.language == "python" and not (block.file or block.runs)
    ]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", ["README.md", "docs/quickstart.md"])
def test_every_command_is_listed(path: str) -> None:
    text = (ROOT / path).read_text()
    assert not [
        c for c in COMMANDS if not re.search(rf"^\| \[?`(t5lite )?{c}`", text, re.MULTILINE)
    ]


def test_documented_exit_statuses_and_outcomes_are_those_of_a_run() -> None:
    text = (ROOT / "docs/quickstart.md").read_text()
    assert f"| {RESTART_EXIT} | preempted" in text
    assert f"| {UNAVAILABLE_EXIT} | a resource is unavailable" in text
    assert f"| {STALLED_EXIT} | stalled" in text
    assert f"| {INTERRUPTED_EXIT} | interrupted" in text
    assert not [outcome for outcome in OUTCOMES if f"`{outcome}`" not in text]


def test_documented_model_files_are_all_there_are() -> None:
    text = (ROOT / "docs/models_and_conversion.md").read_text()
    families = re.findall(r"`(\w+?)_?\*?`", text.split("## Convert")[0])
    files = [path.stem for path in (ROOT / "gin/models").glob("*.gin") if path.stem != "quickstart"]
    assert not [name for name in files if not name.startswith(tuple(families))]
