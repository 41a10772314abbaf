"""The names that gin files and flags can bind. They stay the same when modules move.

Each stands for a frozen dataclass or a builder function. Nothing here knows gin.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from t5lite.core.errors import UserError
from t5lite.core.fields import field_error
from t5lite.data.class_balance import ClassBalance
from t5lite.data.curriculum import LengthCurriculum
from t5lite.data.mixture import Mixture
from t5lite.data.sources.file_source import FileSource
from t5lite.data.sources.tfds_source import TfdsSource
from t5lite.data.task import Task
from t5lite.data.text.augmentations import DropWords, SpanNoise, SwapWords
from t5lite.data.text.candidate_sampling import SampleCandidates
from t5lite.data.text.dialogue import Dialogue
from t5lite.data.text.few_shot import FewShot
from t5lite.data.text.special_tokens import SpecialTokens
from t5lite.data.text.tokenizers_vocabulary import TokenizersVocabulary
from t5lite.data.text.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.data.text.vocabulary_training import VocabularyTraining
from t5lite.inference.decoding import Decoding
from t5lite.inference.evaluate import Evaluation
from t5lite.inference.requests import Inference
from t5lite.interop.conversion import Conversion
from t5lite.launching.sweeps.sweep import Sweep
from t5lite.losses.answer_span import SpanCrossEntropy
from t5lite.losses.chain import CRF
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.losses.distillation import Distillation
from t5lite.losses.layer_distillation import LayerDistillation
from t5lite.losses.next_sentence import NextSentence
from t5lite.losses.ranking import ListwiseSoftmax, PairwiseLogistic, PointwiseLogistic
from t5lite.losses.task_weights import TaskWeights
from t5lite.losses.two_passes import Adversarial, RDrop
from t5lite.models.adalora import AdaLoRA
from t5lite.models.architectures import DecoderOnly, EncoderDecoder, EncoderOnly
from t5lite.models.bottleneck import Bottleneck
from t5lite.models.classifier import Classes
from t5lite.models.config import T5Config
from t5lite.models.encoder_decoder_classifier import EncoderDecoderClassifier
from t5lite.models.ia3 import IA3
from t5lite.models.lora import LoRA
from t5lite.models.prefix_tuning import PrefixTuning
from t5lite.models.prompt_tuning import PromptTuning, PTuning
from t5lite.objectives.causal import Causal
from t5lite.objectives.classes import Classification, Tagging
from t5lite.objectives.extraction import Extraction
from t5lite.objectives.masked_lm import MaskedLM
from t5lite.objectives.prefix_lm import PrefixLM
from t5lite.objectives.ranking import Ranking
from t5lite.objectives.sentence_pairs import SentencePairs
from t5lite.objectives.span_corruption import SpanCorruption
from t5lite.objectives.supervised import Supervised
from t5lite.objectives.ul2 import UL2
from t5lite.optimizers.adafactor import adafactor
from t5lite.optimizers.by_pattern import optimizers_by_pattern
from t5lite.optimizers.function_schedule import optax_schedules
from t5lite.optimizers.optax_table import REJECTED, is_optax_factory, optax_factories
from t5lite.optimizers.optimizer import Optimizer, make_optimizer
from t5lite.optimizers.schedules import (
    ConstantSchedule,
    CosineSchedule,
    InverseSquareRootSchedule,
    LinearSchedule,
)
from t5lite.optimizers.staged_schedules import (
    CosineRestartsSchedule,
    WarmupStableDecaySchedule,
    joined,
)
from t5lite.parallel.mesh import Mesh
from t5lite.training.bad_steps import BadSteps
from t5lite.training.early_stopping import EarlyStopping
from t5lite.training.layer_rates import LayerRates
from t5lite.training.moving_average import MovingAverage
from t5lite.training.rank_budget import RankBudget
from t5lite.training.run import Run
from t5lite.training.teacher import Teacher
from t5lite.training.train_first import TrainFirst
from t5lite.training.watchdog import Watchdog
from t5lite.training.writers.json_lines import JsonLines
from t5lite.training.writers.tensorboard import TensorBoard
from t5lite.training.writers.weights_and_biases import WeightsAndBiases


def encoder_decoder(config: T5Config) -> EncoderDecoder:
    """Builds the encoder-decoder model.

    Args:
        config: its sizes and parts, with layers in encoder and decoder.

    Raises:
        UserError: if either has no layers.
    """
    _check_stacks("EncoderDecoder", config, encoder=True, decoder=True)
    return EncoderDecoder(config)


def decoder_only(config: T5Config) -> DecoderOnly:
    """Builds the decoder-only model.

    Args:
        config: its sizes and parts, without encoder layers.

    Raises:
        UserError: if it has encoder layers, or no decoder layers.
    """
    _check_stacks("DecoderOnly", config, encoder=False, decoder=True)
    return DecoderOnly(config)


def encoder_only(config: T5Config, classes: Classes | None = None) -> EncoderOnly:
    """Builds the encoder-only model.

    Args:
        config: its sizes and parts, without decoder layers.
        classes: of each example or of each word; None for logits of tokens.

    Raises:
        UserError: if it has decoder layers, no encoder layers, or classes and `next_sentence`.
    """
    _check_stacks("EncoderOnly", config, encoder=True, decoder=False)
    if classes is not None and config.next_sentence:
        raise field_error(config, "next_sentence", "False for a model of Classes")
    return EncoderOnly(config, classes)


def encoder_decoder_classifier(config: T5Config, classes: Classes) -> EncoderDecoderClassifier:
    """Builds the encoder-decoder model with classes instead of targets.

    Args:
        config: its sizes and parts, with layers in encoder and decoder.
        classes: of each example or of each word.

    Raises:
        UserError: if either has no layers.
    """
    _check_stacks("EncoderDecoderClassifier", config, encoder=True, decoder=True)
    return EncoderDecoderClassifier(config, classes)


def _check_stacks(owner: str, config: T5Config, *, encoder: bool, decoder: bool) -> None:
    for stack, wanted in (("encoder", encoder), ("decoder", decoder)):
        layers = getattr(config, f"num_{stack}_layers")
        if (layers > 0) != wanted:
            raise UserError(
                f"{owner} needs T5Config.num_{stack}_layers {'> 0' if wanted else '= 0'}, got "
                f"{layers}; bind it, or use another of EncoderDecoder, EncoderOnly and DecoderOnly"
            )


def optimizer(name: str, factory: Callable[..., Any]) -> Callable[..., Optimizer]:
    """Returns a builder with the arguments of an optax factory, its learning rate a schedule."""
    signature = inspect.signature(factory)
    # What the step itself supplies is not for users to bind.
    parameters = [p for p in signature.parameters.values() if p.name != "param_axes"]

    def build(**arguments: Any) -> Optimizer:
        return make_optimizer(factory, name=name, **arguments)

    # Read by gin through inspect; mypy knows of no such attribute of functions.
    build.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[p.replace(kind=p.KEYWORD_ONLY) for p in parameters]
    )
    return build


def as_configurable(name: str, target: Callable[..., Any]) -> Callable[..., Any]:
    """Returns what gin builds for a name from a user's own code: optax factories are optimizers."""
    return optimizer(name, target) if is_optax_factory(target) else target


ROOTS: Mapping[str, Callable[..., Any]] = {
    "train": Run,
    "evaluate": Evaluation,
    "vocab": VocabularyTraining,
    "infer": Inference,
    "sweep": Sweep,
    "convert": Conversion,
}

# Names of optax that cannot be bound, and why.
REJECTED_NAMES: Mapping[str, str] = REJECTED

TABLE: Mapping[str, Callable[..., Any]] = {
    **ROOTS,
    "EncoderDecoder": encoder_decoder,
    "EncoderOnly": encoder_only,
    "EncoderDecoderClassifier": encoder_decoder_classifier,
    "DecoderOnly": decoder_only,
    "Classes": Classes,
    "T5Config": T5Config,
    "LoRA": LoRA,
    "IA3": IA3,
    "AdaLoRA": AdaLoRA,
    "Bottleneck": Bottleneck,
    "PrefixTuning": PrefixTuning,
    "PromptTuning": PromptTuning,
    "PTuning": PTuning,
    "CrossEntropy": CrossEntropy,
    "CRF": CRF,
    "SpanCrossEntropy": SpanCrossEntropy,
    "ListwiseSoftmax": ListwiseSoftmax,
    "PairwiseLogistic": PairwiseLogistic,
    "PointwiseLogistic": PointwiseLogistic,
    "NextSentence": NextSentence,
    "TaskWeights": TaskWeights,
    "LayerDistillation": LayerDistillation,
    "Distillation": Distillation,
    "Teacher": Teacher,
    "RDrop": RDrop,
    "Adversarial": Adversarial,
    "Decoding": Decoding,
    "Task": Task,
    "Mixture": Mixture,
    "DropWords": DropWords,
    "SwapWords": SwapWords,
    "SpanNoise": SpanNoise,
    "SampleCandidates": SampleCandidates,
    "FewShot": FewShot,
    "Dialogue": Dialogue,
    "ClassBalance": ClassBalance,
    "LengthCurriculum": LengthCurriculum,
    "TfdsSource": TfdsSource,
    "FileSource": FileSource,
    "ByteVocabulary": ByteVocabulary,
    "SentencePieceVocabulary": SentencePieceVocabulary,
    "TokenizersVocabulary": TokenizersVocabulary,
    "SpecialTokens": SpecialTokens,
    "SpanCorruption": SpanCorruption,
    "UL2": UL2,
    "PrefixLM": PrefixLM,
    "Causal": Causal,
    "MaskedLM": MaskedLM,
    "SentencePairs": SentencePairs,
    "Supervised": Supervised,
    "Classification": Classification,
    "Tagging": Tagging,
    "Extraction": Extraction,
    "Ranking": Ranking,
    "Adafactor": optimizer("Adafactor", adafactor),
    "AdamW": optimizer("AdamW", optax.adamw),
    "Lion": optimizer("Lion", optax.lion),
    **{name: optimizer(name, factory) for name, factory in optax_factories().items()},
    "OptimizersByPattern": optimizers_by_pattern,
    "Constant": ConstantSchedule,
    "InverseSquareRoot": InverseSquareRootSchedule,
    "Cosine": CosineSchedule,
    "Linear": LinearSchedule,
    "WarmupStableDecay": WarmupStableDecaySchedule,
    "CosineRestarts": CosineRestartsSchedule,
    "Joined": joined,
    **{f"optax.{name}": builder for name, builder in optax_schedules().items()},
    "Mesh": Mesh,
    "Watchdog": Watchdog,
    "BadSteps": BadSteps,
    "TrainFirst": TrainFirst,
    "LayerRates": LayerRates,
    "MovingAverage": MovingAverage,
    "RankBudget": RankBudget,
    "EarlyStopping": EarlyStopping,
    "JsonLines": JsonLines,
    "TensorBoard": TensorBoard,
    "WeightsAndBiases": WeightsAndBiases,
}
