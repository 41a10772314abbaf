"""A training run as the user describes it: all choices, checked before anything starts."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.core.errors import UserError, choose, suggestion
from t5lite.core.fields import (
    MAX_COUNT,
    MAX_STEPS,
    check_field_choice,
    check_fields,
    field_error,
    field_name,
)
from t5lite.core.files import local_folder
from t5lite.core.numbers import Number
from t5lite.core.patterns import check_patterns
from t5lite.data.batching.features import Layout, TaskLayout, make_layout, with_prompt
from t5lite.data.mixture import Mixture
from t5lite.data.task import Task
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import (
    Loss,
    check_loss,
    check_structure,
    evaluation_loss,
    needed_models,
)
from t5lite.models.adalora import AdaLoRA
from t5lite.models.classifier import INDEPENDENT, RANKING
from t5lite.models.config_fields import DTYPES
from t5lite.models.initial_text import text_adapters
from t5lite.models.model import Model, check_adapters
from t5lite.models.positions import check_row_length
from t5lite.models.token_adapters import prompt_length
from t5lite.optimizers.by_pattern import OptimizersByPattern
from t5lite.optimizers.optimizer import Optimizer
from t5lite.parallel.mesh import Mesh
from t5lite.training.bad_steps import BadSteps
from t5lite.training.base_dtype import BASE_DTYPES
from t5lite.training.early_stopping import EarlyStopping
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.layer_rates import LayerRates
from t5lite.training.moving_average import MovingAverage
from t5lite.training.partial_restore import check_rules
from t5lite.training.rank_budget import RankBudget
from t5lite.training.tasks_fit import check_tasks_fit
from t5lite.training.teacher import Teacher
from t5lite.training.train_first import TrainFirst
from t5lite.training.trainable import EVERYTHING
from t5lite.training.watchdog import Watchdog
from t5lite.training.writers.json_lines import JsonLines
from t5lite.training.writers.tensorboard import TensorBoard
from t5lite.training.writers.writer import Writer

# What a run does whose latest checkpoint is damaged.
PREVIOUS = "previous"
STOP = "stop"

# Fields that count something of which there is at least one.
COUNT_FIELDS = (
    "batch_size",
    "microbatches",
    "length_multiple",
    "log_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "keep_every_steps",
    "eval_every_steps",
)
# Fields that count something that takes memory.
MEMORY_FIELDS = ("batch_size", "length_multiple", "show_examples", "data_workers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All choices of `t5lite train`. Other commands use a part of them.

    Args:
        model, optimizer, loss, mesh: see their own classes.
        teacher: a trained model that the loss compares the model with; None if it needs none.
        task: a task, or a mixture of several.
        model_dir: a local directory for everything that the run writes.
        total_steps: number of steps, including those before a restart.
        batch_size: rows of the global batch.
        seed: of parameters, dropout and data.
        data_seed: of the data only; None for `seed`. A run that is resumed with another one
            restarts its data in another order.
        skip_batches: pairs (first, last) of batches that are skipped; batches are numbered from 1,
            as the steps that would use them if none were skipped.
        packed: whether several examples share a row, as many as fit.
        data_workers: processes that prepare batches; 0 for a thread.
        microbatches: parts of the batch whose gradients are accumulated.
        length_multiple: the length of rows is that of the longest example, rounded up to a multiple
            of this many tokens, which meshes that split rows and some kernels need.
        param_dtype: dtype of parameters between steps, "float32", or "bfloat16" with stochastic
            rounding, so that updates are kept on average. Within a step each device has a float32
            copy of its share.
        base_dtype: dtype in which a run with adapters keeps its base, what neither trains nor
            belongs to an adapter: "bfloat16", or "int8" for the kernels of its linear maps with a
            scale for each output; None for `param_dtype`. The base is that of
            `initial_checkpoint`, and stays there as it is.
        offload_optimizer: whether the optimizer state is in the hosts' memory between updates.
        trainable: regular expressions; the parameters whose whole name one of them matches train,
            the others are constants without gradients and optimizer state.
        train_first: which of them train alone in the first steps; None: all train from the start.
        layer_rates: factors of the learning rate by layer, and which layers train from which step;
            None for equal rates.
        moving_average: of the parameters that train, which is evaluated and saved beside them; None
            for none.
        rank_budget: of the singular values of AdaLoRA, which needs one; None for other models.
        max_gradient_norm: gradients of a larger global norm are scaled down; None for no limit.
        bad_steps: which steps leave the state as it was, and when the run returns to an earlier
            checkpoint; None turns both off.
        train_split, eval_split: of the task's source.
        eval_every_steps: how often the whole `eval_split` is evaluated; None for only before and
            after training.
        log_every_steps: how often metrics are written.
        checkpoint_every_steps: how often a checkpoint is saved; the last step always is.
        keep_checkpoints: number of latest checkpoints that are kept.
        keep_every_steps: checkpoints at multiples of this are never deleted; None for none.
        keep_highest, keep_lowest: a score such as "exact_match_fraction"; the checkpoint with the
            best value is kept too, and one is saved with every evaluation. Set at most one of them.
        early_stopping: ends the run once the score that ranks checkpoints no longer improves; None
            trains all steps.
        initial_checkpoint: a `checkpoints/STEP` directory with the parameters that a new run starts
            from, a MODEL_DIR for its latest, or MODEL_DIR:best.
        restore_rules: the sources of parameters, if the model differs from the checkpoint's: a list
            of ('map', PATTERN, NAME), ('fresh', PATTERN), ('grow', PATTERN), ('layers',
            PATTERN, LAYERS) and ('skip', PATTERN); see `training.partial_restore`.
        on_damage: what a run does whose latest checkpoint is damaged: "previous" resumes from the
            latest one that is not, and moves the damaged ones to `damaged_checkpoints`; "stop"
            fails.
        restore_optimizer: whether a new run also continues from the step and the optimizer state of
            the initial checkpoint; its data starts from the first batch.
        watchdog: limits of the phases of training; None for none.
        writers: where metrics are written; `JsonLines` is the record and always among them.
        show_examples: number of examples of `eval_split` to fill in and print at the end.

    Raises:
        UserError: if a choice is out of range or conflicts with another.
    """

    gin_name = "train"

    model: Model
    task: Task | Mixture
    optimizer: Optimizer | OptimizersByPattern
    model_dir: str
    total_steps: int
    batch_size: int
    seed: int = 0
    data_seed: int | None = None
    skip_batches: Sequence[Any] = ()
    packed: bool = False
    data_workers: int = 0
    loss: Loss = CrossEntropy()
    teacher: Teacher | None = None
    mesh: Mesh = Mesh()
    microbatches: int = 1
    length_multiple: int = 1
    param_dtype: str = "float32"
    base_dtype: str | None = None
    offload_optimizer: bool = False
    trainable: Sequence[Any] = EVERYTHING
    train_first: TrainFirst | None = None
    layer_rates: LayerRates | None = None
    moving_average: MovingAverage | None = None
    rank_budget: RankBudget | None = None
    max_gradient_norm: Number | None = None
    bad_steps: BadSteps | None = BadSteps()
    train_split: str = "train"
    eval_split: str = "validation"
    eval_every_steps: int | None = None
    log_every_steps: int = 50
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 3
    keep_every_steps: int | None = None
    keep_highest: str | None = None
    keep_lowest: str | None = None
    early_stopping: EarlyStopping | None = None
    initial_checkpoint: str | None = None
    restore_rules: Sequence[Any] = ()
    restore_optimizer: bool = False
    on_damage: str = PREVIOUS
    watchdog: Watchdog | None = Watchdog()
    writers: Sequence[Any] = (JsonLines(), TensorBoard())
    show_examples: int = 0

    def __post_init__(self) -> None:
        folder = local_folder(field_name(self, "model_dir"), self.model_dir)
        object.__setattr__(self, "model_dir", str(folder))
        from_zero = ("total_steps", "show_examples", "data_workers")
        rule = f"and at most {MAX_STEPS:,}"
        check_fields(self, from_zero, f"at least 0 {rule}", lambda n: 0 <= n <= MAX_STEPS)
        check_fields(self, COUNT_FIELDS, f"at least 1 {rule}", lambda n: 1 <= n <= MAX_STEPS)
        check_fields(self, MEMORY_FIELDS, f"at most {MAX_COUNT:,}", lambda n: n <= MAX_COUNT)
        check_fields(self, ("seed", "data_seed"), "in [0, 2**31)", lambda n: 0 <= n < 2**31)
        check_fields(self, ("max_gradient_norm",), "over 0", lambda norm: norm > 0)
        for pair in self.skip_batches:
            fits = isinstance(pair, tuple | list) and [type(n) for n in pair] == [int, int]
            if not (fits and 1 <= pair[0] <= pair[1]):
                rule = "pairs (first, last) with 1 <= first <= last, as in [(10, 12)]"
                raise field_error(self, "skip_batches", rule)
        if self.batch_size % self.microbatches:
            divisor = f"{field_name(self, 'microbatches')} ({self.microbatches})"
            raise field_error(self, "batch_size", f"divisible by {divisor}")
        if self.keep_highest is not None and self.keep_lowest is not None:
            raise UserError(
                f"{field_name(self, 'keep_highest')} and {field_name(self, 'keep_lowest')} are "
                f"mutually exclusive, got {self.keep_highest!r} and {self.keep_lowest!r}"
            )
        if self.early_stopping is not None and not self.ranks_checkpoints:
            raise UserError(
                f"{field_name(self, 'early_stopping')} needs {field_name(self, 'keep_highest')} or "
                f"{field_name(self, 'keep_lowest')}, the score that must improve, got neither"
            )
        if self.early_stopping is not None and self.eval_every_steps is None:
            raise field_error(self, "eval_every_steps", "bound with train.early_stopping")
        check_field_choice(self, "param_dtype", DTYPES)
        if self.base_dtype is not None:
            self._check_base_dtype()
        check_field_choice(self, "on_damage", (PREVIOUS, STOP))
        check_loss(self.loss, self.model.config.dropout_rate)
        classes = self.model.classes
        pairs = "pairs" if self.model.config.next_sentence else INDEPENDENT
        check_structure(self.loss, classes.structure if classes else pairs)
        self._check_needs()
        check_patterns(field_name(self, "trainable"), self.trainable)
        self._check_writers()
        check_rules(self.restore_rules)
        for name in ("restore_rules", "restore_optimizer"):
            if getattr(self, name) and self.initial_checkpoint is None:
                needed = field_name(self, "initial_checkpoint")
                raise UserError(f"{field_name(self, name)} needs {needed}, got none")
        if self.restore_rules and self.restore_optimizer:
            raise UserError(
                f"{field_name(self, 'restore_optimizer')} needs the model of the checkpoint, got "
                f"{field_name(self, 'restore_rules')}"
            )
        self._check_fit()

    def _check_base_dtype(self) -> None:
        check_field_choice(self, "base_dtype", BASE_DTYPES)
        for name, given in (
            ("T5Config.adapters", self.model.config.adapters),
            (field_name(self, "initial_checkpoint"), self.initial_checkpoint),
        ):
            if not given:
                raise UserError(
                    f"{field_name(self, 'base_dtype')} is for adapters on a trained base and needs "
                    f"{name}, got none; bind it, or {field_name(self, 'base_dtype')} = None"
                )
        if any(rule[0] != "skip" for rule in self.restore_rules):
            raise UserError(
                f"{field_name(self, 'base_dtype')} needs a base that fits the model as it is, got "
                f"{field_name(self, 'restore_rules')} {list(self.restore_rules)!r}"
            )

    def _check_needs(self) -> None:
        """Checks that the run has the other models that its loss needs, and no more."""
        kind = type(self.loss).__name__
        given = {"teacher": self.teacher}
        for name in needed_models(self.loss):
            if choose(f"{kind}.needs", name, given) is None:
                raise UserError(
                    f"{field_name(self, 'loss')} {kind} needs {field_name(self, name)}, got none; "
                    f"bind {field_name(self, name)} = @{name.title()}()"
                )
        for name in given.keys() - set(needed_models(self.loss)):
            if given[name] is not None:
                raise UserError(
                    f"{field_name(self, name)} is used by no loss, got {field_name(self, 'loss')} "
                    f"{kind}; bind {field_name(self, 'loss')} = @Distillation()"
                )

    def _check_writers(self) -> None:
        for writer in self.writers:
            if not isinstance(writer, Writer) or isinstance(writer, type):
                raise UserError(
                    f"{field_name(self, 'writers')} must be objects with a method open, such as "
                    f"@TensorBoard(), got {writer!r}"
                )
        if sum(isinstance(writer, JsonLines) for writer in self.writers) != 1:
            raise UserError(
                f"{field_name(self, 'writers')} must list @JsonLines() once: metrics.jsonl is the "
                f"record that other commands read, got {list(self.writers)!r}"
            )

    def _check_fit(self) -> None:
        config = self.model.config
        check_adapters(self.model)
        if text_adapters(config.adapters) and self.initial_checkpoint is None:
            raise UserError(
                "PromptTuning.initial_text is embedded by the parameters of a checkpoint and needs "
                f"{field_name(self, 'initial_checkpoint')}, got none"
            )
        if self.rank_budget is not None:
            ranks = [each.rank for each in config.adapters if isinstance(each, AdaLoRA)]
            self.rank_budget.check(ranks, self.total_steps)
        if self._ranks and config.encoder_attention == "transient_global":
            raise UserError(
                "T5Config.encoder_attention must not be 'transient_global' with Classes.structure "
                f"{RANKING!r}: its global tokens would mix the candidates of a query"
            )
        if self.packed and config.encoder_attention == "transient_global":
            raise UserError(
                f"{field_name(self, 'packed')} must be False with T5Config.encoder_attention "
                "'transient_global', whose global tokens would mix several examples"
            )
        check_tasks_fit(self.model, self.task, self.train_split)
        # Each candidate of a query counts its positions from 0.
        longest = [getattr(task.objective, "pair_length", 0) for task in self.task.tasks]
        check_row_length(config, max(longest) or max(self.layout.lengths.values()))

    @property
    def _ranks(self) -> bool:
        """Whether the model ranks the candidates of queries."""
        return self.model.classes is not None and self.model.classes.structure == RANKING

    @property
    def ranks_checkpoints(self) -> bool:
        """Whether the checkpoint with the best score is kept."""
        return bool(self.keep_highest or self.keep_lowest)

    @property
    def ranking_score(self) -> str | None:
        """The name of the score that ranks checkpoints; None if none does."""
        return self.keep_highest or self.keep_lowest

    def rank(self, scores: Mapping[str, float]) -> float | None:
        """Returns the rank of a checkpoint with these scores; None if checkpoints have none.

        Raises:
            UserError: if the score that `keep_highest` or `keep_lowest` names does not exist.
        """
        name = self.ranking_score
        if name is None:
            return None
        if name not in scores:
            field = "keep_highest" if self.keep_highest else "keep_lowest"
            raise field_error(self, field, "a score of the evaluation", suggestion(name, scores))
        value = scores[name] if self.keep_highest else -scores[name]
        return value if math.isfinite(value) else None

    @property
    def stream_seed(self) -> int:
        """The seed of the data."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def layout(self) -> Layout:
        """The layout of rows, which are as long as the longest example."""
        prompt = prompt_length(self.model.config.adapters)
        layout = make_layout(
            self.model.layout,
            # Rows hold the prompt, and are as long as the multiple with it.
            inputs_length=self._longest("inputs_length", prompt) - prompt,
            targets_length=self._longest("targets_length"),
            total_length=self._longest("total_length", prompt) - prompt,
            has_inputs=any(task.objective.inputs_length for task in self.task.tasks),
            start_token=self.model.config.start_token,
            has_types=self.model.config.num_token_types > 1
            and any(getattr(task.objective, "has_types", False) for task in self.task.tasks),
            has_pairs=self.model.config.next_sentence,
            has_queries=self._ranks,
        )
        prompted = with_prompt(layout, prompt)
        return TaskLayout(prompted) if hasattr(self.loss, "tasks") else prompted

    @property
    def joined_length(self) -> int:
        """Tokens of a row that has the inputs and the targets of each of its examples."""
        if self.packed:
            return self._longest("inputs_length") + self._longest("targets_length")
        return self._longest("total_length")

    def _longest(self, name: str, more: int = 0) -> int:
        """Returns a length of the longest example and `more`, rounded up to that of a row, in
        tokens.
        """
        length: int = more + max(getattr(task.objective, name) for task in self.task.tasks)
        return length + -length % self.length_multiple

    @property
    def evaluation_loss(self) -> Loss:
        """What evaluation scores: the loss, or without other models its part that needs none."""
        return evaluation_loss(self.loss)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The numbers of the run. With a dropout rate of 0 the program has no dropout."""
        return Hyperparameters(
            optimizer=self.optimizer,
            loss=self.loss,
            seed=np.int32(self.seed),
            dropout_rate=self.model.config.dropout_rate or None,
            max_gradient_norm=self.max_gradient_norm,
            bad_steps=self.bad_steps,
            train_first=self.train_first,
            layer_rates=self.layer_rates,
            moving_average=self.moving_average,
            rank_budget=self.rank_budget,
        )
