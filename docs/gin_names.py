"""The reference of gin names as Markdown, from the table of public names.

`python docs/gin_names.py` prints it; Sphinx appends it to the page `gin_names`.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from t5lite.public_names import ROOTS, TABLE

# A group is a heading and the rooms of the package whose names it lists, in this order.
GROUPS: Mapping[str, Sequence[str]] = {
    "Models": ("models", "adapters"),
    "Losses": ("losses",),
    "Data": ("data",),
    "Objectives": ("objectives",),
    "Optimizers and schedules": ("optimizers",),
    "Evaluation and inference": ("inference",),
    "Training": ("training",),
    "Meshes": ("parallel",),
}


def reference() -> str:
    """Returns a section for each group and a list of parameters for each name."""
    own = {name: target for name, target in TABLE.items() if not name.startswith("optax.")}
    lines = [
        "",
        "## Roots",
        "",
        "Objects that commands build; `t5lite train`, for example, builds `train` and `evaluate`.",
        "",
    ]
    for name in ROOTS:
        lines += _section(name, own.pop(name))
    for heading, rooms in GROUPS.items():
        names = [name for name, target in own.items() if _room(target) in rooms]
        if names:
            lines += [f"## {heading}", ""]
        for name in names:
            lines += _section(name, own.pop(name))
    if own:
        lines += ["## Others", ""]
        for name, target in own.items():
            lines += _section(name, target)
    lines += ["## optax", "", "Parameters and defaults are those of the installed optax.", ""]
    lines += ["| name | parameters |", "|---|---|"]
    for name, target in TABLE.items():
        if name.startswith("optax."):
            parameters = ", ".join(f"`{p}`" for p in inspect.signature(target).parameters)
            lines.append(f"| `{name}` | {parameters} |")
    return "\n".join(lines) + "\n"


def _factory(target: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a builder wraps, which has the docstring."""
    return (
        inspect.getclosurevars(target).nonlocals.get("factory", target)
        if (inspect.isfunction(target))
        else target
    )


def _room(target: Callable[..., Any]) -> str:
    """The package that a name belongs to; a model builder belongs to what it returns."""
    factory = _factory(target)
    module = factory.__module__
    if module == "t5lite.public_names":
        module = getattr(inspect.signature(factory).return_annotation, "__module__", module)
    return "optimizers" if module.startswith("optax.") else module.split(".")[1]


def _section(name: str, target: Callable[..., Any]) -> list[str]:
    factory = _factory(target)
    docstring = inspect.getdoc(factory) or ""
    meanings = _meanings(factory)
    summary = " ".join(docstring.split("\n\n")[0].split())
    lines = [f"### {name}", "", _escaped(summary), ""]
    for parameter in inspect.signature(target).parameters.values():
        kind = _escaped(_type_text(parameter.annotation))
        lines.append(f"`{parameter.name}` {kind}, {_default_text(parameter)}")
        lines += [f": {_escaped(meanings.get(parameter.name, '')) or chr(0x2013)}", ""]
    return [*lines, ""]


def _meanings(factory: Callable[..., Any]) -> dict[str, str]:
    """Descriptions of parameters; a class inherits those of its base classes."""
    owners = reversed(inspect.getmro(factory)) if inspect.isclass(factory) else [factory]
    return {
        name: re.sub(r"^see (?:their|its) (?:own )?class(?:es)?\.$", "see below.", text)
        for owner in owners
        for name, text in _arguments(re.sub(r":\w+:`", "`", inspect.getdoc(owner) or ""))
    }


def _arguments(docstring: str) -> Iterator[tuple[str, str]]:
    """Yields the names and descriptions of a docstring's `Args:` section."""
    match = re.search(
        r"^Args:\n((?P<indent> +)(?:.*\n?))((?:(?P=indent).*\n?|\n)*)", docstring, re.M
    )
    if match is None:
        return
    body, indent = match[1] + match[3], match["indent"]
    entries = re.split(rf"^{indent}(?=\S)", body, flags=re.MULTILINE)
    for entry in entries:
        names, colon, text = entry.partition(":")
        if colon:
            for name in re.split(r",\s*", names):
                yield name.strip(), " ".join(text.split())


def _type_text(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "any"
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        names = dict.fromkeys(map(_type_text, typing.get_args(annotation)))
        if "ndarray" in names or any("Array" in name for name in names):
            # What optax accepts as a number, of which gin can bind only these.
            others = [name for name in names if name in ("function", "None")]
            return " or ".join(["number", *others])
        return " or ".join(names)
    if annotation in (types.NoneType, None):
        return "None"
    origin = typing.get_origin(annotation) or annotation
    plain = {"Sequence": "list", "Mapping": "dict", "Callable": "function", "Any": "number"}
    name = getattr(origin, "__name__", str(origin))
    return plain.get(name, name)


def _default_text(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if default is parameter.empty:
        return "required"
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return f"default `{type(default).__name__}()`"
    if callable(default):
        return f"default `{getattr(default, '__name__', type(default).__name__)}`"
    # A default that a dataclass makes anew for each instance has no value to show.
    text = repr(default)
    return "optional" if text == "<factory>" else f"default `{text}`"


def _escaped(text: str) -> str:
    """Keeps code spans and escapes what Markdown would interpret elsewhere."""
    parts = re.split(r"(`+[^`]*`+)", text)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"([\\*_<>\[\]{}$#])", r"\\\1", parts[index])
    return "".join(parts).replace("|", "\\|")


if __name__ == "__main__":
    print(reference())
