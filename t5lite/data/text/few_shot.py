"""Few-shot prompts: solved examples of the training split, in the inputs of every example."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.fields import MAX_COUNT, check_fields, field_error, field_name
from t5lite.data.text import templates
from t5lite.data.text.fields import Record

# The field of a record that holds its shots.
SHOTS = "shots"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
    """Solved examples that `{shots}` in `Task.inputs` stands for.

    Args:
        template: the text of a solved example, such as "Q: {question} A: {answer} ".
        count: solved examples in a prompt. The first ones are left out where the inputs would
            exceed the length of the objective.
        split: of the task's source, that of `train.train_split` or a part of it.
        seed: of the choice.
        fixed: whether all prompts have the same solved examples; False to draw them for each
            record, in training anew whenever it is read.

    Raises:
        UserError: if a number is out of range, or the template names no field.
    """

    template: str
    count: int = 4
    split: str = "train"
    seed: int = 0
    fixed: bool = False

    def __post_init__(self) -> None:
        templates.check_names_field(field_name(self, "template"), self.template)
        check_fields(self, ["count"], "at least 1", lambda n: 1 <= n <= MAX_COUNT)
        check_fields(self, ["seed"], "in [0, 2**31)", lambda n: 0 <= n < 2**31)
        if SHOTS in templates.fields_of(field_name(self, "template"), self.template):
            raise field_error(self, "template", f"without {{{SHOTS}}}")


@dataclasses.dataclass(frozen=True)
class Shots:
    """The solved examples of a task.

    Args:
        size: number of records of the split.
        read: returns a record by number, after the preprocessors; None if one drops it.
        fingerprint: of the records.
    """

    few_shot: FewShot
    size: int
    read: Callable[[int], Record | None]
    fingerprint: str
    list_separator: str | None

    def texts(self, record: Record, number: int, rng: np.random.Generator | None) -> Sequence[str]:
        """Returns the solved examples for a record, never one with the same fields.

        Args:
            record: after the preprocessors, without any augmentation.
            number: of the record in its split, which seeds the choice if there is no `rng`.
            rng: of this reading of the record in training.

        Raises:
            UserError: if too few other records exist.
        """
        few = self.few_shot
        if few.fixed:
            rng = np.random.default_rng((few.seed, 0, 1))
        elif rng is None:
            rng = np.random.default_rng((few.seed, number, 2))
        found: list[str] = []
        seen: set[int] = set()
        # Records that are equal or dropped are replaced by further ones.
        size = min(self.size, few.count + 1)
        while len(found) < few.count and len(seen) < self.size:
            for drawn in rng.choice(self.size, size, replace=False).tolist():
                if drawn in seen or len(found) == few.count:
                    continue
                seen.add(drawn)
                shot = self.read(drawn)
                if shot is not None and shot != record:
                    text = templates.fill(few.template, shot, list_separator=self.list_separator)
                    found.append(text)
            size = min(self.size, 2 * size)
        if len(found) < few.count:
            raise field_error(
                few, "count", f"at most the {len(found)} other records of {few.split!r}"
            )
        return found


def fill_with_shots(
    template: str,
    record: Record,
    shots: Sequence[str],
    fits: Callable[[str], bool],
    list_separator: str | None,
) -> str:
    """Returns the text of a template with as many of the last shots as fit.

    Raises:
        UserError: as `templates.fill` does.
    """
    for start in range(len(shots) + 1):
        filled = {**record, SHOTS: "".join(shots[start:])}
        text = templates.fill(template, filled, list_separator=list_separator)
        if start == len(shots) or fits(text):
            return text
    raise AssertionError("the last text is returned")


def check_no_shots_field(fields: Sequence[str]) -> None:
    """Raises a UserError if records have a field of the name that is reserved for shots."""
    if SHOTS in fields:
        raise UserError(
            f"Task.few_shot makes the field {SHOTS!r}, which the records have too; rename theirs"
        )
