"""What is learned: records, the text they become, a vocabulary and an objective."""

import dataclasses
import re
from collections.abc import Sequence

from t5lite.core.errors import UserError
from t5lite.core.examples import Objective, PairObjective
from t5lite.core.named import named, versioned
from t5lite.data import metrics
from t5lite.data.sources.tfds_source import Source
from t5lite.data.storage.building import DEFAULT_OPTIONS, BuildOptions
from t5lite.data.text import preprocessors, templates
from t5lite.data.text.vocabularies import Vocabulary
from t5lite.data.tokens import Tokenized, TokenRecords, cached


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Examples that an objective makes from the records of a source.

    Args:
        source, vocabulary, objective: see their own classes.
        name: tells the tasks of a mixture apart, in metrics too.
        inputs: a template such as "translate English to German: {en}" for an objective that takes
            pairs; None for one that takes running text.
        targets: a template for the target of a pair, or for the running text.
        preprocessors: steps that change records, by name; see `data.preprocessors`.
        metrics: of what the model predicts for the inputs, by name; see `data.metrics`. Evaluation
            predicts only for tasks that name some.
        postprocessors: steps that change answers and predictions before metrics see them.
        references: for pairs, the field whose text is the right answer for metrics, or a JSON
            list of all of them; None for the target.
        choices: for pairs, the texts of which the likeliest is predicted, or the field that holds
            a JSON list of them; None for writing freely.
        category: for pairs, a field; evaluation also tells the scores of each of its values.
        join_documents: running text is read across records without a mark between them and cut
            to the length that the objective takes, as T5's pre-training does. False: an
            example never holds text of two records; long ones make several.
        token_cache: a folder where token ids are kept, so that text is encoded once; None for
            encoding as the text is read.

    Raises:
        UserError: where the parts do not fit together.
    """

    source: Source
    vocabulary: Vocabulary
    objective: Objective
    name: str = "task"
    inputs: str | None = None
    targets: str = "{text}"
    preprocessors: Sequence[str] = ()
    metrics: Sequence[str] = ()
    postprocessors: Sequence[str] = ()
    references: str | None = None
    choices: str | Sequence[str] | None = None
    category: str | None = None
    join_documents: bool = True
    token_cache: str | None = None

    def __post_init__(self) -> None:
        kind = type(self.objective).__name__
        if self.takes_pairs != (self.inputs is not None):
            rule = "needs a template" if self.takes_pairs else "must be None"
            raise UserError(f"Task.inputs {rule} for {kind}, got {self.inputs!r}")
        if not re.fullmatch(r"[\w.:-]+", self.name):
            raise UserError(f"Task.name must be of letters, digits and _.:-, got {self.name!r}")
        for name in self.preprocessors:
            preprocessors.preprocessor(name)
        self.score([], [])
        for field in ("references", "choices", "category"):
            if getattr(self, field) is not None and not self.takes_pairs:
                raise UserError(f"Task.{field} is for pairs, got {kind}, which takes running text")
        if self.choices is not None and not len(self.choices):
            raise UserError("Task.choices must hold a text, got none")
        if self.choices is not None and not self.metrics:
            raise UserError("Task.choices is for metrics; name some in Task.metrics")
        for owner, template in self._templates.items():
            if not templates.fields_of(owner, template):
                raise UserError(f"{owner} must name a field, as in {{text}}, got {template!r}")
        self.objective.check(self.vocabulary)

    @property
    def takes_pairs(self) -> bool:
        """Whether examples are made from an input and a target, and not from running text."""
        return isinstance(self.objective, PairObjective)

    @property
    def _templates(self) -> dict[str, str]:
        given = {"Task.inputs": self.inputs, "Task.targets": self.targets}
        return {owner: template for owner, template in given.items() if template is not None}

    @property
    def tasks(self) -> tuple["Task", ...]:
        """Itself: a task is a mixture of one."""
        return (self,)

    def rates(self, split: str) -> tuple[float, ...]:
        """Of each of `tasks`."""
        return (1.0,)

    def tokens(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> TokenRecords:
        """Returns the token ids of the records of `split`: (text,) or (inputs, targets).

        Raises:
            UserError: where a template names a field that the records have not.
        """
        tokenized = self._tokenized(split, options)
        return cached(tokenized, self.token_cache, options) if self.token_cache else tokenized

    def _tokenized(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Tokenized:
        records = self.source.records(split, options)
        # A step may make fields of its own.
        if not self.preprocessors:
            for owner, template in self._templates.items():
                templates.check_fields(owner, template, records.fields)
        texts, steps = tuple(self._templates.values()), tuple(self.preprocessors)
        return Tokenized(records, texts, steps, self.vocabulary)

    def score(
        self, answers: Sequence[Sequence[str]], predictions: Sequence[str]
    ) -> dict[str, float]:
        """Returns the scores of what was predicted, given the right answers of each."""
        steps = [named("Task.postprocessors", n, metrics.TEXT_STEPS) for n in self.postprocessors]
        chosen = [metrics.metric(name) for name in self.metrics]
        for step in steps:
            answers = [list(map(step, right)) for right in answers]
            predictions = list(map(step, predictions))
        scores: dict[str, float] = {}
        for metric in chosen if answers else []:
            scores |= metric(answers, predictions)
        return scores

    def versions_of_scores(self) -> list[str]:
        """Returns what scores depend on besides the answers: names that change with the code."""
        return [
            versioned(owner, name, table)
            for owner, names, table in (
                ("Task.postprocessors", self.postprocessors, metrics.TEXT_STEPS),
                ("Task.metrics", self.metrics, metrics.METRICS),
            )
            for name in names
        ]

    def identity(self, split: str) -> dict[str, str]:
        """Returns what a place in the stream of `split` depends on, to be saved with it."""
        return {
            f"{self.name}.data": self._tokenized(split).fingerprint,
            f"{self.name}.vocabulary": self.vocabulary.fingerprint,
            f"{self.name}.objective": repr(self.objective),
            f"{self.name}.join_documents": str(self.join_documents),
        }
