"""Sphinx configuration: `sphinx-build -W docs OUTPUT`, after `pip install -e '.[docs]'`."""

import pathlib
import re
import sys

from pygments.lexers.python import PythonLexer
from sphinx.application import Sphinx

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

from gin_names import reference  # noqa: E402  (a module of this directory)

project = "t5lite"
author = "the t5lite authors"
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "t5lite"
html_show_copyright = False
myst_heading_anchors = 3
# A link to a file of the repository that is no page, such as an experiment.
OUTSIDE = re.compile(
    r"\[([^\]]*)\]\((?:\.\./)+([A-Z]\w+\.md|(?:experiments|launch|gin|tests)/[^)]*)\)"
)


def _rewrite(app: Sphinx, docname: str, source: list[str]) -> None:
    """Appends the generated tables to the page `gin_names`; names files outside the manual.

    In the repository these are links; the HTML has no such files.
    """
    if docname == "gin_names":
        source[0] += reference()
    source[0] = OUTSIDE.sub(_named, source[0])


def _named(link: re.Match[str]) -> str:
    text, path = link.groups()
    return f"`{path}`" if text == path else f"{text} (`{path}`)"


def setup(app: Sphinx) -> None:
    app.connect("source-read", _rewrite)
    # Gin's syntax is close enough to Python's to be highlighted as such.
    app.add_lexer("gin", PythonLexer)
