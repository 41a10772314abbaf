"""A task: the records of a source, the texts made of them, a vocabulary and an objective."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from t5lite.core.errors import UserError
from t5lite.core.examples import Objective, PairObjective
from t5lite.core.fields import field_error, field_name
from t5lite.core.named import named, versioned
from t5lite.data.class_balance import ClassBalance, label_of
from t5lite.data.curriculum import LengthCurriculum
from t5lite.data.metrics import METRIC_FUNCTIONS, metric
from t5lite.data.sources.records import Records
from t5lite.data.sources.tfds_source import Source
from t5lite.data.storage.building import DEFAULT_OPTIONS, BuildOptions
from t5lite.data.text import preprocessors, templates
from t5lite.data.text.augmentations import Augmentation
from t5lite.data.text.dialogue import Dialogue
from t5lite.data.text.few_shot import SHOTS, FewShot, Shots, check_no_shots_field
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
        augmentations: random changes of the records that training reads; see `text.augmentations`.
        few_shot: for pairs, solved examples in the inputs; None for none.
        dialogue: takes the role of both templates for records that hold turns; None for others.
        balance: how often training reads each class; None for every record once an epoch.
        curriculum: the lengths of the records that training begins with; None for all.

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
    augmentations: Sequence[Augmentation] = ()
    few_shot: FewShot | None = None
    dialogue: Dialogue | None = None
    balance: ClassBalance | None = None
    curriculum: LengthCurriculum | None = None

    def __post_init__(self) -> None:
        kind = type(self.objective).__name__
        if self.dialogue is None and self.takes_pairs != (self.inputs is not None):
            rule = "a template" if self.takes_pairs else "None"
            raise field_error(self, "inputs", f"{rule} for {kind}")
        self._check_dialogue()
        self._check_training()
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
        if not self.vocabulary.is_stand_in:
            self.objective.check(self.vocabulary)

    def _check_dialogue(self) -> None:
        if self.dialogue is None:
            return
        kind = type(self.objective).__name__
        templates_are = f"{field_name(self, 'dialogue')}, whose template makes the texts"
        if self.inputs is not None:
            raise field_error(self, "inputs", f"None with {templates_are}")
        if self.targets != type(self).targets:
            raise field_error(self, "targets", f"left out with {templates_are}")
        if not self.takes_pairs and not getattr(self.objective, "targets_end_text", False):
            raise UserError(
                f"{field_name(self, 'dialogue')} needs an objective whose targets are turns, such "
                f"as Causal, PrefixLM and Supervised, got {kind}"
            )
        if not self.takes_pairs and self.join_documents:
            raise field_error(self, "join_documents", f"False with {field_name(self, 'dialogue')}")
        for field in ("references", "few_shot", "token_cache"):
            if getattr(self, field) is not None:
                raise field_error(self, field, f"None with {field_name(self, 'dialogue')}")

    def _check_training(self) -> None:
        """Checks what training does to records: augmentation, few-shot examples, their order."""
        for augmentation in self.augmentations:
            if not isinstance(augmentation, Augmentation) or isinstance(augmentation, type):
                raise UserError(
                    f"{field_name(self, 'augmentations')} must be objects with a method augment, "
                    f"such as @DropWords(), got {augmentation!r}"
                )
        for field in ("augmentations", "few_shot"):
            if getattr(self, field) and self.token_cache is not None:
                rule = f"None with {field_name(self, field)}, which changes texts as they are read"
                raise field_error(self, "token_cache", rule)
        if self.augmentations and getattr(self.objective, "has_word_classes", False):
            rule = "empty for an objective with a class for each word"
            raise field_error(self, "augmentations", rule)
        if self.few_shot is not None:
            if self.inputs is None:
                raise field_error(self, "few_shot", "None for running text")
            if SHOTS not in templates.fields_of(field_name(self, "inputs"), self.inputs):
                rule = f"a template with {{{SHOTS}}} for {field_name(self, 'few_shot')}"
                raise field_error(self, "inputs", rule)
        if self.curriculum is not None and not self.takes_pairs and self.join_documents:
            rule = f"False with {field_name(self, 'curriculum')}, which skips long records"
            raise field_error(self, "join_documents", rule)

    @property
    def takes_pairs(self) -> bool:
        """Whether examples are made from an input and a target, not from running text."""
        return isinstance(self.objective, PairObjective)

    @property
    def _templates(self) -> dict[str, str]:
        if self.dialogue is not None:
            return {}
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
        fields = [*records.fields]
        shots = None
        if self.few_shot is not None:
            check_no_shots_field(fields)
            shots = self._shots(self.few_shot, options)
            fields.append(SHOTS)
        # A preprocessor may make new fields.
        if not self.preprocessors:
            for owner, template in self._templates.items():
                templates.check_template(owner, template, fields)
        return dataclasses.replace(
            self._plain(records),
            augmentations=tuple(self.augmentations),
            shots=shots,
            dialogue=self.dialogue,
            takes_pairs=self.takes_pairs,
            max_length=self._max_length,
        )

    def _plain(self, records: Records) -> Tokenized:
        return Tokenized(
            records,
            tuple(self._templates.values()),
            tuple(self.preprocessors),
            self.vocabulary,
            self.list_separator,
        )

    def _shots(self, few_shot: FewShot, options: BuildOptions) -> Shots:
        solved = self._plain(self.source.records(few_shot.split, options))
        if not self.preprocessors:
            owner = field_name(few_shot, "template")
            templates.check_template(owner, few_shot.template, solved.records.fields)
        fingerprint = solved.records.fingerprint
        return Shots(few_shot, len(solved), solved.record, fingerprint, self.list_separator)

    @property
    def _max_length(self) -> int:
        """Tokens of a dialogue, or of the inputs of a pair, that the objective has room for."""
        vocabulary = self.vocabulary
        if isinstance(self.objective, PairObjective):
            ends = (*vocabulary.first_input_ids, *vocabulary.last_input_ids)
            return self.objective.inputs_length - len(ends)
        denoiser = self.objective.choose(np.random.default_rng(0), vocabulary)
        # A document whose every token is predicted has a token before it and one after it.
        return denoiser.tokens_length - 2 * denoiser.lookahead

    def labels(self, split: str, field: str) -> list[str | None]:
        """Returns a field of every record; None of those that a preprocessor drops.

        Raises:
            UserError: if a record has no such field, or no text in it.
        """
        tokenized = self._tokenized(split)
        records = map(tokenized.record, range(len(tokenized)))
        labels = [None if record is None else label_of(record, field) for record in records]
        if not any(labels):
            raise UserError(f"task {self.name!r} has no record: its preprocessors drop all")
        return labels

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
        made = {
            f"{self.name}.data": self._tokenized(split).fingerprint,
            f"{self.name}.vocabulary": self.vocabulary.fingerprint,
            f"{self.name}.objective": repr(self.objective),
            f"{self.name}.join_documents": str(self.join_documents),
        }
        for field in ("balance", "curriculum"):
            # Checkpoints of earlier versions have neither.
            if getattr(self, field) is not None:
                made[f"{self.name}.{field}"] = repr(getattr(self, field))
        return made
