"""Dialogues: turns of a record as one text, of which the turns of chosen roles are learned."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.core.errors import UserError, suggestion
from t5lite.core.examples import Tokens
from t5lite.core.fields import field_error, field_name
from t5lite.data.text import templates
from t5lite.data.text.fields import JsonText, Record
from t5lite.data.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Dialogues that take the role of templates.

    A record holds a list of turns, such as [{"role": "user", "text": "hi"}, ...]. An objective for
    running text reads the dialogue as one text, in which the tokens of learned turns are targets.
    One for pairs makes an example of every learned turn, with the turns before it as its inputs.
    The oldest turns are left out where a dialogue exceeds the length of the objective.

    Args:
        learn: the roles whose turns are learned.
        turns: the field with the list of turns.
        role: the member of a turn with its role.
        template: of a turn. In a learned turn, the last field and what follows it are learned; for
            pairs, the last field. The part before it is encoded by itself, and so is the rest.

    Raises:
        UserError: for a template without a field, or no role.
    """

    learn: Sequence[str]
    turns: str = "turns"
    role: str = "role"
    template: str = "{role}: {text}\n"

    def __post_init__(self) -> None:
        if not self.learn or not all(isinstance(role, str) for role in self.learn):
            raise field_error(self, "learn", "roles, as in ['assistant']")
        # gin passes a list, which is not hashable.
        object.__setattr__(self, "learn", tuple(self.learn))
        templates.check_names_field(field_name(self, "template"), self.template)


@dataclasses.dataclass(frozen=True)
class Turn:
    """The tokens of a turn: what precedes its text, the text, and the text with what follows it."""

    head: Tokens
    text: Tokens
    rest: Tokens
    is_learned: bool

    @property
    def length(self) -> int:
        """Tokens of the whole turn."""
        return len(self.head) + len(self.rest)

    @property
    def weights(self) -> Tokens:
        """1 for the tokens that are learned, 0 for others."""
        weights = np.zeros(self.length, np.int32)
        weights[len(self.head) :] = self.is_learned
        return weights

    @property
    def ids(self) -> Tokens:
        """The whole turn."""
        return np.concatenate([self.head, self.rest])


def encoded_turns(dialogue: Dialogue, record: Record, vocabulary: Vocabulary) -> list[Turn]:
    """Returns the turns of a record.

    Raises:
        UserError: if the record has no list of turns, or a turn has no role or text.
    """
    head, text, tail = templates.around_last_field(dialogue.template)
    turns = []
    for number, turn in enumerate(_turns_of(dialogue, record)):
        try:
            before, said, after = (templates.fill(part, turn) for part in (head, text, tail))
        except UserError as error:
            raise UserError(f"turn {number}: {error}") from error
        begins_word = not before or before[-1:].isspace()
        encode = vocabulary.encode if begins_word else vocabulary.encode_after
        is_learned = turn[dialogue.role] in dialogue.learn
        rest = encode(said + after)
        turns.append(
            Turn(
                head=vocabulary.encode(before) if before else np.zeros(0, np.int32),
                # Only that of a learned turn is ever used.
                text=encode(said) if after and is_learned else rest,
                rest=rest,
                is_learned=is_learned,
            )
        )
    return turns


def dialogue_text(turns: Sequence[Turn], limit: int) -> tuple[Tokens, ...]:
    """Returns the tokens of the latest turns that fit into `limit`, and the weight of each.

    The last turn stays however long it is. Without a learned turn there are no texts.

    >>> turns = [Turn(np.array([1, 2]), np.array([n]), np.array([n, 9]), n > 5) for n in (5, 6, 7)]
    >>> [ids.tolist() for ids in dialogue_text(turns, 11)]
    [[1, 2, 6, 9, 1, 2, 7, 9], [0, 0, 1, 1, 0, 0, 1, 1]]
    """
    kept = list(turns[_first_that_fits(turns, limit) :])
    if not any(turn.is_learned and len(turn.rest) for turn in kept):
        return ()
    ids = np.concatenate([turn.ids for turn in kept]).astype(np.int32)
    return ids, np.concatenate([turn.weights for turn in kept])


def dialogue_pairs(turns: Sequence[Turn], limit: int) -> tuple[Tokens, ...]:
    """Returns the inputs and the target of each learned turn: (inputs, targets, inputs, ...).

    >>> turns = [Turn(np.array([1, 2]), np.array([n]), np.array([n, 9]), n > 5) for n in (5, 6, 7)]
    >>> [ids.tolist() for ids in dialogue_pairs(turns, 6)]
    [[1, 2, 5, 9, 1, 2], [6], [1, 2, 6, 9, 1, 2], [7]]
    """
    texts: list[Tokens] = []
    for number, turn in enumerate(turns):
        if turn.is_learned:
            earlier = turns[:number]
            first = _first_that_fits(earlier, limit - len(turn.head), keeps_last=False)
            context = [each.ids for each in earlier[first:]]
            texts += [np.concatenate([*context, turn.head]).astype(np.int32), turn.text]
    return tuple(texts)


def _first_that_fits(turns: Sequence[Turn], limit: int, *, keeps_last: bool = True) -> int:
    """Returns the number of the first turn from which on all turns fit into `limit` tokens."""
    first = len(turns)
    left = limit
    while first and (turns[first - 1].length <= left or (keeps_last and first == len(turns))):
        first -= 1
        left -= turns[first].length
    return first


def _turns_of(dialogue: Dialogue, record: Record) -> list[dict[str, str]]:
    owner = field_name(dialogue, "turns")
    name = dialogue.turns
    if name not in record:
        raise UserError(f"{owner} names the field {name!r}; {suggestion(name, record)}")
    field = record[name]
    value = field.value if isinstance(field, JsonText) else field
    if isinstance(value, dict):
        value = _rows_of(value)
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise UserError(f"{owner}: the field {name!r} must be a list of objects, got {field[:60]}")
    return [_checked(dialogue, turn) for turn in value]


def _rows_of(columns: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Returns the list of objects that TFDS stores as an object of lists; None for others."""
    lists = [column for column in columns.values() if isinstance(column, list)]
    if len(lists) < len(columns) or len({len(column) for column in lists}) != 1:
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _checked(dialogue: Dialogue, turn: Mapping[str, Any]) -> dict[str, str]:
    """Returns the texts of a turn."""
    texts = {name: value for name, value in turn.items() if isinstance(value, str)}
    if dialogue.role not in texts:
        owner = field_name(dialogue, "role")
        near = suggestion(dialogue.role, texts)
        raise UserError(f"{owner} names {dialogue.role!r}, which a turn has no text of; {near}")
    return texts
