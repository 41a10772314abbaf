"""Which bindings a configuration reads: those that bind nothing are mistakes.

The bindings are followed from the roots through references and macros, without building anything.
All roots count, whatever the command builds: the same files and flags serve every command, so a
binding is wrong only if no command would read it.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gin import config as gin_internals

from t5lite.core.errors import UserError, suggestion
from t5lite.gin_text import decode_own_names

# From scope and selector to the values of parameters, as gin keeps them.
Bindings = Mapping[tuple[str, str], Mapping[str, Any]]
_MACRO = "gin.macro"


class Binding(NamedTuple):
    """What a statement binds; a macro binds the `value` of `gin.macro` in a scope of its name."""

    scope: str
    selector: str
    parameter: str

    @property
    def is_macro(self) -> bool:
        """Whether it defines a macro."""
        return self.selector == _MACRO

    @property
    def shown(self) -> str:
        """The name as users write it."""
        if self.is_macro:
            return self.scope
        prefix = f"{self.scope}/" if self.scope else ""
        name = decode_own_names(self.selector.removeprefix("t5lite."))
        return f"{prefix}{name}.{self.parameter}"


def current_bindings() -> Bindings:
    """Returns a copy of everything that is bound now."""
    # NOTE: gin has no public way to list bindings.
    return {key: dict(values) for key, values in gin_internals._CONFIG.items()}


def read_bindings(bindings: Bindings, roots: Iterable[str]) -> set[Binding]:
    """Returns the bindings that building `roots` reads."""
    read: set[Binding] = set()
    visited: set[tuple[tuple[str, ...], str]] = set()
    waiting = [((), _selector(root)) for root in roots]
    while waiting:
        scopes, selector = waiting.pop()
        if (scopes, selector) in visited:
            continue
        visited.add((scopes, selector))
        values = dict(_values(bindings, scopes, selector))
        for parameter, (binding, value) in values.items():
            read.add(binding._replace(parameter=parameter))
            waiting += [
                (tuple(reference.scopes) or scopes, reference.configurable.selector)
                for reference in _references(value)
                if not _is_plain(reference)
            ]
        parts = getattr(gin_internals._REGISTRY[selector].wrapped, "parts", {})
        waiting += [
            (scopes, _selector(part))
            for parameter, part in parts.items()
            if parameter not in values
        ]
    return read


def check_all_read(states: Sequence[Bindings], roots: Iterable[str]) -> None:
    """Checks that every binding is read by some root.

    A binding from a file may go unread if a later file or a flag replaced the object or the value
    that read it. A flag may not.

    Args:
        states: everything bound after each file or include, in order, and last after the flags.

    Raises:
        UserError: for the first binding that nothing reads, with a suggestion.
    """
    *earlier, last = states
    roots = tuple(roots)
    read = read_bindings(last, roots)

    @functools.cache
    def read_before() -> set[Binding]:
        return {binding for state in earlier for binding in read_bindings(state, roots)}

    for (scope, selector), values in last.items():
        for parameter, value in values.items():
            binding = Binding(scope, selector, parameter)
            if binding in read:
                continue
            from_files = earlier[-1].get((scope, selector), {})
            is_from_file = parameter in from_files and repr(from_files[parameter]) == repr(value)
            was_used = is_from_file and (
                binding in read_before()
                or any(_is_referred_to(state, binding) for state in earlier)
            )
            if was_used:
                continue
            kind = "macro" if binding.is_macro else "parameter"
            near = suggestion(binding.shown, {other.shown for other in read})
            hint = f"; {near}" if near.startswith("did") else ""
            raise UserError(
                f"{binding.shown} binds nothing: no object of this configuration uses such a "
                f"{kind}{hint}"
            )


def _is_referred_to(state: Bindings, binding: Binding) -> bool:
    """Whether the owner of a binding is referred to anywhere in an earlier state."""
    for values in state.values():
        for reference in _references(values):
            if reference.configurable.selector != binding.selector:
                continue
            scope = "/".join(reference.scopes)
            if binding.is_macro and scope != binding.scope:
                continue
            if not (scope and binding.scope) or f"{scope}/".startswith(f"{binding.scope}/"):
                return True
    return False


def _values(
    bindings: Bindings, scopes: tuple[str, ...], selector: str
) -> Iterator[tuple[str, tuple[Binding, Any]]]:
    """Yields the parameters of a configurable called in `scopes`, those of inner scopes last."""
    for count in range(len(scopes) + 1):
        scope = "/".join(scopes[:count])
        for parameter, value in bindings.get((scope, selector), {}).items():
            yield parameter, (Binding(scope, selector, parameter), value)


def _references(value: Any) -> Iterator[Any]:
    """Yields the references anywhere in a bound value."""
    if isinstance(value, gin_internals.ConfigurableReference):
        yield value
    elif isinstance(value, Mapping):
        for each in (*value.keys(), *value.values()):
            yield from _references(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _references(each)


def _is_plain(reference: Any) -> bool:
    """Whether a reference stands for a function of the user's own, not for its result."""
    is_own = getattr(reference.configurable.wrapped, "is_own", False)
    return is_own and not reference.evaluate


def _selector(name: str) -> str:
    return str(gin_internals._REGISTRY.get_match(name).selector)
