"""Reads the manual: its code blocks, its commands and its links.

A fenced block may carry attributes behind its language: `{file=NAME}` for a file that the commands
of the page use, `{run}` for commands that a test executes.
"""

import dataclasses
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "docs"))
from gin_names import reference  # noqa: E402  (beside the manual, as Sphinx imports it)

MANUAL = sorted((ROOT / "docs").rglob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *MANUAL, *ROOT.glob("experiments/*/README.md")])
GIN_FILES = sorted([*ROOT.glob("gin/**/*.gin"), *ROOT.glob("experiments/**/*.gin")])

FENCE = re.compile(
    r"^```(?P<language>[\w-]*)(?: \{(?P<attributes>[^}]*)\})?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    language: str
    attributes: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the block is the content of."""
        match = re.search(r"\bfile=(\S+)", self.attributes)
        return match.group(1) if match else None

    @property
    def runs(self) -> bool:
        """Whether a test executes its commands."""
        return "run" in self.attributes.split()


def blocks(path: pathlib.Path) -> list[Block]:
    """Returns the fenced blocks of a page in order."""
    return [
        Block(match["language"], match["attributes"] or "", match["text"])
        for match in FENCE.finditer(path.read_text())
    ]


def steps(block: Block) -> Iterator[tuple[list[str], list[str]]]:
    """Yields the words of each command of a console block and the lines of its output."""
    words: list[str] | None = None
    output: list[str] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            if words is not None:
                yield words, output
            words, output = shlex.split(line[2:], comments=True), []
        elif line.strip():
            output.append(line)
    if words is not None:
        yield words, output


def commands(path: pathlib.Path) -> list[list[str]]:
    """Returns the words of every t5lite command in a page or in the header of a gin file."""
    text = path.read_text().replace("\\\n", " ")
    found = re.findall(r"^(?:\$| {4}|#) ?((?:\w+=\S+ )*t5lite .*)$", text, re.MULTILINE)
    found += re.findall(r"`(t5lite [^`\n]+ [^`\n]+)`", text)
    lines = [re.sub(r"^(?:\w+=\S+ )*t5lite ", "", line) for line in found]
    # `--sweep X` reads as `--sweep=X`.
    lines = [re.sub(r"--(sweep|gin_file) ", r"--\1=", line) for line in lines]
    return [shlex.split(line, comments=True) for line in lines]


def links(path: pathlib.Path) -> list[str]:
    """Returns the targets of a page's links and images that lead into the repository."""
    text = FENCE.sub("", path.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(path: pathlib.Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and MyST derive them."""
    text = FENCE.sub("", path.read_text()) + (reference() if path.name == "gin_names.md" else "")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", title.lower().replace("`", "")).strip().replace(" ", "-")
        for title in titles
    }
