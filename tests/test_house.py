"""The rules of the code base that a reader relies on and that no other tool checks."""

import ast
import collections
import graphlib
import pathlib
import re
import statistics
from collections.abc import Iterator

import grimp
import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted((ROOT / "t5lite").rglob("*.py"))
# Prose that users and contributors read.
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "experiments/*/*.md", "**/*.gin", "launch/*")
    for path in ROOT.glob(pattern)
    if path.is_file()
    and not set(path.relative_to(ROOT).parts) & {".git", "golden", "runs", "build"}
)
MAX_FUNCTION_LINES = 100
# The loop is a document, in which nothing is hidden.
MAX_LOOP_LINES = 130
MAX_MEDIAN_FILE_LINES = 130

# The logger of a module.
SHARED_NAMES = {"log"}

# Phrases that the glossary of the project replaces by the terms of the field.
FORBIDDEN_PHRASES = (
    r"(?:is|are|was|be) told",
    r"(?:tell|tells|told) (?:of|what|where|how|that|the)",
    r"(?:goes|go|going|gone|went) on (?:with|by|from|where|until|to|as|at|without)",
    r"(?:take|takes|taken|taking) up",
    r"(?:crew|entrant|entrants|member of a population)",
    r"(?:lacks|lacking)",
    r"cannot (?:both|all) be",
    r"(?:is|are) not there",
    r"(?:is|are) there (?:already|once|until|when|where)",
    r"(?:written|writes|write) down",
    r"for ever",
    r"(?:begin|begins|began|begun) anew",
    r"(?:to be had|be had)",
    r"(?:mend|mends|mended)",
    r"what (?:comes|came|becomes|became) of",
    r"(?<!in )places?",
    r"(?:whoever|whosoever)",
    r"on the way",
)
# A value or a name in code, which is not prose.
VALUE = re.compile(r'`[^`]*`|"\w+"')
FORBIDDEN = re.compile(rf"\b(?:{'|'.join(FORBIDDEN_PHRASES)})\b", re.IGNORECASE)


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in SOURCES:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def targets_of(statement: ast.stmt) -> list[ast.expr]:
    if isinstance(statement, ast.Assign):
        return statement.targets
    return [statement.target] if isinstance(statement, ast.AnnAssign) else []


def test_every_public_name_is_defined_once() -> None:
    files_of: dict[str, list[str]] = collections.defaultdict(list)
    for file, tree in trees():
        for statement in tree.body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                files_of[statement.name].append(file)
            for target in targets_of(statement):
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                for name in names:
                    if isinstance(name, ast.Name):
                        files_of[name.id].append(file)
    repeated = {
        name: files
        for name, files in files_of.items()
        if len(files) > 1 and not name.startswith("_") and name not in SHARED_NAMES
    }
    assert not repeated


def test_imports_have_no_cycles() -> None:
    graph = grimp.build_graph("t5lite", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    # Raises a CycleError with the modules of a cycle.
    assert list(graphlib.TopologicalSorter(imports).static_order())


def test_functions_are_short() -> None:
    long = [
        f"{file}:{node.lineno} {node.name}"
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno
        >= (MAX_LOOP_LINES if file == "t5lite/training/loop.py" else MAX_FUNCTION_LINES)
    ]
    assert not long


def test_files_are_short() -> None:
    lines = [len(path.read_text().splitlines()) for path in SOURCES]
    assert statistics.median(lines) <= MAX_MEDIAN_FILE_LINES


def test_lines_are_not_saved_by_tuples() -> None:
    found = [
        f"{file}:{node.lineno}"
        for file, tree in trees()
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple)
            and isinstance(node.value, ast.Tuple)
        )
        or (isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple | ast.List))
    ]
    assert not found


def test_one_module_locks_files() -> None:
    users = [str(p.relative_to(ROOT)) for p in SOURCES if "import fcntl" in p.read_text()]
    assert users == ["t5lite/core/locks.py"]


def test_models_are_not_distinguished_by_class() -> None:
    pattern = re.compile(r"isinstance\([^)]*\b(EncoderDecoder|EncoderOnly|DecoderOnly)\b")
    assert not [f"{p.relative_to(ROOT)}" for p in SOURCES if pattern.search(p.read_text())]


def test_engines_are_not_distinguished_by_name() -> None:
    names = {"local", "slurm", "tpu", "gke"}
    found = [
        f"{file}:{node.lineno}"
        for file, tree in trees()
        if file.startswith(("t5lite/launching", "t5lite/reporting", "t5lite/cli"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Constant) and side.value in names
    ]
    assert not found


def test_errors_derive_the_name_of_their_owner() -> None:
    found = []
    for file, tree in trees():
        for owner in ast.walk(tree):
            if not isinstance(owner, ast.ClassDef):
                continue
            docstrings = {
                id(node.body[0].value)
                for node in ast.walk(owner)
                if isinstance(node, ast.ClassDef | ast.FunctionDef)
                and isinstance(node.body[0], ast.Expr)
            }
            found += [
                f"{file}:{node.lineno} {owner.name}"
                for node in ast.walk(owner)
                if isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in docstrings
                and re.match(rf"{owner.name}\.[a-z]", node.value)
            ]
    assert not found


@pytest.mark.parametrize("paths", [SOURCES, PAGES], ids=["code", "pages"])
def test_prose_uses_the_terms_of_the_field(paths: list[pathlib.Path]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group(0)}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if (match := FORBIDDEN.search(VALUE.sub("", line)))
    ]
    assert not found, "\n" + "\n".join(found)
