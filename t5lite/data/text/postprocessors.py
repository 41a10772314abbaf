"""Postprocessors: functions, by name, that change answers and predictions before metrics.

A postprocessor takes a text and returns the changed text. Name your own as "module:function".
"""

from collections.abc import Callable, Mapping

Postprocessor = Callable[[str], str]


def single_spaces(text: str) -> str:
    """Replaces each run of white space by a space, and strips both ends."""
    return " ".join(text.split())


def join_subwords(text: str) -> str:
    """Joins the parts that byte-pair encoding marks with `@@`.

    >>> join_subwords("some@@ thing el@@ se")
    'something else'
    """
    return text.replace("@@ ", "").removesuffix("@@")


POSTPROCESSORS: Mapping[str, Postprocessor] = {
    "lowercase": str.lower,
    "normalize_whitespace": single_spaces,
    "join_subwords": join_subwords,
}
