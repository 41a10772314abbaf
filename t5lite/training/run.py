"""A training run as the user describes it: all choices, checked before anything starts."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5lite.core.errors import UserError, suggestion
from t5lite.core.fields import check_field_choice, check_fields, field_error, field_name
from t5lite.core.files import local_folder
from t5lite.core.numbers import Number
from t5lite.data.batching.features import Layout, make_layout
from t5lite.data.mixture import Mixture
from t5lite.data.task import Task
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.loss import Loss, check_loss
from t5lite.models.config_fields import DTYPES
from t5lite.models.model import Model, check_adapters
from t5lite.objectives.classes import Classification, Tagging
from t5lite.objectives.masked_lm import MaskedLM
from t5lite.optimizers.optimizer import Optimizer
from t5lite.parallel.mesh import Mesh
from t5lite.training.hyperparameters import Hyperparameters
from t5lite.training.partial_restore import check_rules
from t5lite.training.trainable import EVERYTHING, check_patterns
from t5lite.training.writers.json_lines import JsonLines
from t5lite.training.writers.tensorboard import TensorBoard
from t5lite.training.writers.writer import Writer

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All choices of `t5lite train`. Other commands use a part of them.

    Args:
        model, optimizer, loss, mesh: see their own classes.
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
        offload_optimizer: whether the optimizer state is in the hosts' memory between updates.
        trainable: regular expressions; the parameters whose whole name one of them matches train,
            the others are constants without gradients and optimizer state.
        max_gradient_norm: gradients of a larger global norm are scaled down; None for no limit.
        train_split, eval_split: of the task's source.
        eval_every_steps: how often the whole `eval_split` is evaluated; None for only before and
            after training.
        log_every_steps: how often metrics are written.
        checkpoint_every_steps: how often a checkpoint is saved; the last step always is.
        keep_checkpoints: number of latest checkpoints that are kept.
        keep_every_steps: checkpoints at multiples of this are never deleted; None for none.
        keep_highest, keep_lowest: a score such as "exact_match_fraction"; the checkpoint with the
            best value is kept too, and one is saved with every evaluation. Set at most one of them.
        initial_checkpoint: a `checkpoints/STEP` directory with the parameters that a new run starts
            from, a MODEL_DIR for its latest, or MODEL_DIR:best.
        restore_rules: the sources of parameters, if the model differs from the checkpoint's: a list
            of ('map', PATTERN, NAME), ('fresh', PATTERN), ('grow', PATTERN), ('layers',
            PATTERN, LAYERS) and ('skip', PATTERN); see `training.partial_restore`.
        restore_optimizer: whether a new run also continues from the step and the optimizer state of
            the initial checkpoint; its data starts from the first batch.
        writers: where metrics are written; `JsonLines` is the record and always among them.
        show_examples: number of examples of `eval_split` to fill in and print at the end.

    Raises:
        UserError: if a choice is out of range or conflicts with another.
    """

    gin_name = "train"

    model: Model
    task: Task | Mixture
    optimizer: Optimizer
    model_dir: str
    total_steps: int
    batch_size: int
    seed: int = 0
    data_seed: int | None = None
    skip_batches: Sequence[Any] = ()
    packed: bool = False
    data_workers: int = 0
    loss: Loss = CrossEntropy()
    mesh: Mesh = Mesh()
    microbatches: int = 1
    length_multiple: int = 1
    param_dtype: str = "float32"
    offload_optimizer: bool = False
    trainable: Sequence[Any] = EVERYTHING
    max_gradient_norm: Number | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    eval_every_steps: int | None = None
    log_every_steps: int = 50
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 3
    keep_every_steps: int | None = None
    keep_highest: str | None = None
    keep_lowest: str | None = None
    initial_checkpoint: str | None = None
    restore_rules: Sequence[Any] = ()
    restore_optimizer: bool = False
    writers: Sequence[Any] = (JsonLines(), TensorBoard())
    show_examples: int = 0

    def __post_init__(self) -> None:
        folder = local_folder(field_name(self, "model_dir"), self.model_dir)
        object.__setattr__(self, "model_dir", str(folder))
        from_zero = ("total_steps", "show_examples", "data_workers")
        check_fields(self, from_zero, "at least 0", lambda n: n >= 0)
        check_fields(self, COUNT_FIELDS, "at least 1", lambda n: n >= 1)
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
        check_field_choice(self, "param_dtype", DTYPES)
        check_loss(self.loss)
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
        vocabulary = self.task.vocabulary
        check_adapters(self.model)
        if self.packed and config.encoder_attention == "transient_global":
            raise UserError(
                f"{field_name(self, 'packed')} must be False with T5Config.encoder_attention "
                "'transient_global', whose global tokens would mix several examples"
            )
        if vocabulary.size > config.vocab_size:
            raise UserError(
                f"T5Config.vocab_size must be at least the vocabulary's {vocabulary.size} ids "
                f"({vocabulary.num_sentinels} sentinels included), got {config.vocab_size}"
            )
        for task in self.task.tasks:
            model = type(self.model).__name__
            objective = type(task.objective).__name__
            _check_positions_have_targets(self.model, task.objective)
            if task.metrics and not self.model.has_decoder:
                raise UserError(
                    f"Task.metrics of {task.name!r} need a model with a decoder to write, got "
                    f"{model}; its accuracy is reported without metrics"
                )
            if task.metrics and task.objective.inputs_length == 0:
                raise UserError(
                    f"Task.metrics of {task.name!r} need an objective with inputs, got {objective}"
                )
            if self.model.has_encoder and task.objective.inputs_length == 0:
                raise UserError(
                    f"{model} cannot train on {objective}: it makes no inputs; use DecoderOnly or "
                    "another objective"
                )

    @property
    def ranks_checkpoints(self) -> bool:
        """Whether the checkpoint with the best score is kept."""
        return bool(self.keep_highest or self.keep_lowest)

    def rank(self, scores: Mapping[str, float]) -> float | None:
        """Returns the rank of a checkpoint with these scores; None if checkpoints have none.

        Raises:
            UserError: if the score that `keep_highest` or `keep_lowest` names does not exist.
        """
        name = self.keep_highest or self.keep_lowest
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
        objectives = [task.objective for task in self.task.tasks]

        def longest(name: str) -> int:
            length = max(getattr(objective, name) for objective in objectives)
            return length + -length % self.length_multiple

        return make_layout(
            self.model.layout,
            inputs_length=longest("inputs_length"),
            targets_length=longest("targets_length"),
            total_length=longest("total_length"),
            has_inputs=any(objective.inputs_length for objective in objectives),
            start_token=self.model.config.start_token,
        )

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The numbers of the run. With a dropout rate of 0 the program has no dropout."""
        return Hyperparameters(
            optimizer=self.optimizer,
            loss=self.loss,
            seed=np.int32(self.seed),
            dropout_rate=self.model.config.dropout_rate or None,
            max_gradient_norm=self.max_gradient_norm,
        )


def _check_positions_have_targets(model: Model, objective: Any) -> None:
    """Checks that an encoder alone gets objectives with one target for each position."""
    kind = type(model).__name__
    name = type(objective).__name__
    needed: type | None = None
    if not model.has_decoder:
        needed = MaskedLM
        if model.classes is not None:
            needed = Tagging if model.classes.per_token else Classification
            kind = f"{kind} with Classes.per_token={model.classes.per_token}"
    if needed is not None and not isinstance(objective, needed):
        raise UserError(f"{kind} cannot train on {name}; use {needed.__name__}")
    if needed is None and isinstance(objective, MaskedLM | Classification | Tagging):
        raise UserError(f"{kind} cannot train on {name}, which is for EncoderOnly")
    if isinstance(objective, Classification | Tagging):
        count = model.classes.count if model.classes else 0
        if len(objective.classes) != count:
            raise UserError(
                f"Classes.count must be the number of {name}.classes ({len(objective.classes)}), "
                f"got {count}"
            )
