"""A task: the records of a source, the texts made of them, a vocabulary and an objective."""

import dataclasses
import re
from collections.abc import Sequence

from t5lite.core.examples import Objective, PairObjective
from t5lite.core.fields import field_error, field_name
from t5lite.core.named import named, versioned
from t5lite.data.metrics import METRIC_FUNCTIONS, metric
from t5lite.data.sources.tfds_source import Source
from t5lite.data.storage.building import DEFAULT_OPTIONS, BuildOptions
from t5lite.data.text import preprocessors, templates
from t5lite.data.text.postprocessors import POSTPROCESSORS
from t5lite.data.text.vocabulary import Vocabulary
from t5lite.data.tokens import Tokenized, TokenRecords, cached


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Examples that an objective makes from the records of a source.

    Args:
        source, vocabulary, objective: see their classes.
        name: distinguishes the tasks of a mixture, also in metrics.
        inputs: a template such as "translate English to German: {en}" for an objective that takes
            pairs; None for one that takes running text. See `text.templates`.
        targets: a template for the target of a pair, or for the running text.
        preprocessors: functions, by name, that change records; see `text.preprocessors`.
        metrics: of predictions for the inputs, by name; see `data.metrics`. Evaluation predicts
            only for tasks with metrics.
        postprocessors: functions, by name, that change answers and predictions before metrics; see
            `text.postprocessors`.
        references: for pairs, the field with the right answers for metrics: a text, a list of
            texts, or SQuAD's object with `text`. Without a text, the right answer is the empty one.
            None to use the target.
        choices: for pairs, texts of which the likeliest is the prediction, or the field with a list
            of them; None to generate the prediction.
        category: for pairs, a field; evaluation also reports the scores for each of its values.
        join_documents: whether running text continues across records, without a separator, and is
            cut to the length that the objective takes, as in T5's pre-training. False: an example
            never holds text of two records, and a long record makes several examples.
        token_cache: a folder that keeps token ids, so that text is encoded only once; None to
            encode text whenever it is read.

    Raises:
        UserError: if the parts do not fit together.
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
            rule = "a template" if self.takes_pairs else "None"
            raise field_error(self, "inputs", f"{rule} for {kind}")
        if not re.fullmatch(r"[\w.:-]+", self.name):
            raise field_error(self, "name", "of letters, digits and _.:-")
        for name in self.preprocessors:
            preprocessors.preprocessor(name, owner=field_name(self, "preprocessors"))
        self.score([], [])
        for field in ("references", "choices", "category"):
            if getattr(self, field) is not None and not self.takes_pairs:
                raise field_error(self, field, f"None for {kind}, which takes running text")
        if self.choices is not None and not len(self.choices):
            raise field_error(self, "choices", "at least one text, or None")
        if self.choices is not None and not self.metrics:
            remedy = f"name some in {field_name(self, 'metrics')}"
            raise field_error(self, "choices", "None without metrics", remedy)
        for owner, template in self._templates.items():
            templates.check_names_field(owner, template)
        self.objective.check(self.vocabulary)

    @property
    def takes_pairs(self) -> bool:
        """Whether examples are made from an input and a target, not from running text."""
        return isinstance(self.objective, PairObjective)

    @property
    def _templates(self) -> dict[str, str]:
        given = {"inputs": self.inputs, "targets": self.targets}
        return {field_name(self, name): text for name, text in given.items() if text is not None}

    @property
    def list_separator(self) -> str | None:
        """What joins a list in a template that names no separator; None for JSON."""
        separator: str | None = getattr(self.objective, "list_separator", None)
        return separator

    @property
    def tasks(self) -> tuple["Task", ...]:
        """The task itself, as in a mixture of one."""
        return (self,)

    def rates(self, split: str) -> tuple[float, ...]:
        """The fraction of examples from each of `tasks`."""
        return (1.0,)

    def tokens(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> TokenRecords:
        """Returns the token ids of the records of a split: (text,) or (inputs, targets).

        Raises:
            UserError: if a template names a field that the records do not have.
        """
        tokenized = self._tokenized(split, options)
        return cached(tokenized, self.token_cache, options) if self.token_cache else tokenized

    def _tokenized(self, split: str, options: BuildOptions = DEFAULT_OPTIONS) -> Tokenized:
        records = self.source.records(split, options)
        # A preprocessor may make new fields.
        if not self.preprocessors:
            for owner, template in self._templates.items():
                templates.check_template(owner, template, records.fields)
        return Tokenized(
            records,
            tuple(self._templates.values()),
            tuple(self.preprocessors),
            self.vocabulary,
            self.list_separator,
        )

    def score(
        self, answers: Sequence[Sequence[str]], predictions: Sequence[str]
    ) -> dict[str, float]:
        """Returns the scores of predictions, given the right answers of each."""
        owner = field_name(self, "postprocessors")
        steps = [named(owner, name, POSTPROCESSORS) for name in self.postprocessors]
        metrics = [metric(name, owner=field_name(self, "metrics")) for name in self.metrics]
        for step in steps:
            answers = [list(map(step, right)) for right in answers]
            predictions = list(map(step, predictions))
        scores: dict[str, float] = {}
        for function in metrics if answers else []:
            scores |= function(answers, predictions)
        return scores

    def versions_of_scores(self) -> list[str]:
        """Returns names that change with the code of the metrics and postprocessors."""
        postprocessors = [
            versioned(field_name(self, "postprocessors"), name, POSTPROCESSORS)
            for name in self.postprocessors
        ]
        metrics = [
            versioned(field_name(self, "metrics"), name, METRIC_FUNCTIONS) for name in self.metrics
        ]
        return [*postprocessors, *metrics]

    def identity(self, split: str) -> dict[str, str]:
        """Returns what the cursors of `split` depend on, to be saved with them."""
        return {
            f"{self.name}.data": self._tokenized(split).fingerprint,
            f"{self.name}.vocabulary": self.vocabulary.fingerprint,
            f"{self.name}.objective": repr(self.objective),
            f"{self.name}.join_documents": str(self.join_documents),
        }
