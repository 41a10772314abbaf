"""The table of names that gin files and flags may bind; they stay where files and modules move.

Each stands for a frozen dataclass or a builder function. Nothing here knows gin.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from t5lite.core.errors import UserError
from t5lite.data.file_source import FileSource
from t5lite.data.mixture import Mixture
from t5lite.data.sources import TfdsSource
from t5lite.data.task import Task
from t5lite.data.vocabularies import ByteVocabulary, SentencePieceVocabulary
from t5lite.data.vocabulary_training import VocabularyTraining
from t5lite.inference.evaluate import Evaluation
from t5lite.models.architectures import DecoderOnly, EncoderDecoder
from t5lite.models.config import T5Config
from t5lite.models.losses import CrossEntropy
from t5lite.objectives.causal import Causal
from t5lite.objectives.masked_lm import MaskedLM
from t5lite.objectives.prefix_lm import PrefixLM
from t5lite.objectives.span_corruption import SpanCorruption
from t5lite.objectives.supervised import Supervised
from t5lite.objectives.ul2 import UL2
from t5lite.optimizers.adafactor import adafactor
from t5lite.optimizers.optimizer import Optimizer, make_optimizer
from t5lite.optimizers.schedules import Constant, Cosine, InverseSquareRoot, Linear
from t5lite.parallel.mesh import Mesh
from t5lite.training.run import Run


def encoder_decoder(config: T5Config) -> EncoderDecoder:
    """Builds the encoder-decoder model."""
    if config.num_encoder_layers == 0:
        raise UserError(
            "EncoderDecoder needs T5Config.num_encoder_layers > 0, got 0; "
            "bind it, or use DecoderOnly"
        )
    return EncoderDecoder(config)


def decoder_only(config: T5Config) -> DecoderOnly:
    """Builds the decoder-only model."""
    if config.num_encoder_layers != 0:
        raise UserError(
            "DecoderOnly needs T5Config.num_encoder_layers = 0, "
            f"got {config.num_encoder_layers}; leave it out, or use EncoderDecoder"
        )
    return DecoderOnly(config)


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


# One searches along a line and needs the loss as a function; the other is deprecated by optax.
_OPTAX_EXCEPTIONS = ("lbfgs", "optimistic_adam")


def _optax_aliases() -> dict[str, Callable[..., Any]]:
    """Every optimizer that optax exports, by its name there."""
    found: dict[str, Callable[..., Any]] = {}
    for name in dir(optax):
        factory = getattr(optax, name)
        if (
            inspect.isfunction(factory)
            and not name.startswith(("_", "scale_by"))
            and name not in _OPTAX_EXCEPTIONS
            and "learning_rate" in inspect.signature(factory).parameters
            and "GradientTransformation" in str(inspect.signature(factory).return_annotation)
        ):
            found[name] = factory
    return found


ROOTS: Mapping[str, Callable[..., Any]] = {
    "train": Run,
    "evaluate": Evaluation,
    "vocab": VocabularyTraining,
}

TABLE: Mapping[str, Callable[..., Any]] = {
    **ROOTS,
    "EncoderDecoder": encoder_decoder,
    "DecoderOnly": decoder_only,
    "T5Config": T5Config,
    "CrossEntropy": CrossEntropy,
    "Task": Task,
    "Mixture": Mixture,
    "TfdsSource": TfdsSource,
    "FileSource": FileSource,
    "ByteVocabulary": ByteVocabulary,
    "SentencePieceVocabulary": SentencePieceVocabulary,
    "SpanCorruption": SpanCorruption,
    "UL2": UL2,
    "PrefixLM": PrefixLM,
    "Causal": Causal,
    "MaskedLM": MaskedLM,
    "Supervised": Supervised,
    "Adafactor": optimizer("Adafactor", adafactor),
    "AdamW": optimizer("AdamW", optax.adamw),
    "Lion": optimizer("Lion", optax.lion),
    **{f"optax.{k}": optimizer(f"optax.{k}", v) for k, v in _optax_aliases().items()},
    "Constant": Constant,
    "InverseSquareRoot": InverseSquareRoot,
    "Cosine": Cosine,
    "Linear": Linear,
    "Mesh": Mesh,
}
