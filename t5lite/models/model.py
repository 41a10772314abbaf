"""What the rest of the program knows of a model: a protocol, and functions of any model."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from t5lite.core.batches import Batch
from t5lite.core.errors import UserError
from t5lite.core.lazy import by_name
from t5lite.core.numbers import Number
from t5lite.models.cache import Cache
from t5lite.models.classifier import Classes
from t5lite.models.config import T5Config
from t5lite.models.initializers import Parameter
from t5lite.models.token_adapters import AttentionAdapter, InputAdapter

_Result = TypeVar("_Result")


@runtime_checkable
class Model(Protocol):
    """A Flax module from a batch to logits.

    - `config`: sizes and parts; `config.start_token` precedes the first target of a decoder.
    - `layout`: the kind of rows it takes, a key of `data.batching.features.LAYOUTS`.
    - `has_encoder`: whether inputs and targets are separate sequences for it, or it has no targets.
    - `has_decoder`: whether it generates targets.
    - `classes`: what its logits decide between; None for tokens.
    - `hidden(batch, dropout_rate=)` and `logits(hidden)`: the two halves of `__call__`, so that a
      loss can compute logits in parts.
    - `embedded(batch)`: the embedded tokens of each stack by `offsets_name`; under these names a
      batch may hold what is added to them.
    - `init`, `apply` and `clone`: of Flax.
    """

    @property
    def config(self) -> T5Config: ...
    @property
    def layout(self) -> str: ...
    @property
    def has_encoder(self) -> bool: ...
    @property
    def has_decoder(self) -> bool: ...
    @property
    def classes(self) -> Classes | None: ...
    def hidden(
        self, batch: Batch, *, dropout_rate: Number | None = None
    ) -> Float[Array, "b l e"]: ...
    def logits(self, x: Float[Array, "b l e"]) -> Float[Array, "b l v"]: ...
    def embedded(self, batch: Batch) -> dict[str, Float[Array, "b l e"]]: ...
    def init(self, *args: Any, **kwargs: Any) -> Any: ...
    def apply(self, *args: Any, **kwargs: Any) -> Any: ...
    def clone(self, **updates: Any) -> Any: ...


@runtime_checkable
class GenerativeModel(Model, Protocol):
    """A model that generates targets token by token.

    - `start(batch, capacity=)`: the cache before the first token.
    - `extend(batch, cache)`: what `logits` takes for tokens that follow those of the cache.
    - `extend_by_one`: logits after one more token of each of several hypotheses.
    """

    def start(self, batch: Batch, *, capacity: int) -> Cache: ...
    def extend(self, batch: Batch, cache: Cache) -> tuple[Float[Array, "b l e"], Cache]: ...
    def extend_by_one(
        self,
        tokens: Int[Array, "b hypotheses"],
        visible: Bool[Array, "b hypotheses capacity"],
        position: Int[Array, ""],
        cache: Cache,
    ) -> tuple[Float[Array, "b hypotheses v"], Cache]: ...


def generative(model: Model, owner: str) -> GenerativeModel:
    """Returns a model that has a decoder.

    Raises:
        UserError: if it has none.
    """
    if not (model.has_decoder and isinstance(model, GenerativeModel)):
        raise UserError(
            f"{owner} needs a model with a decoder, got {type(model).__name__}; see t5lite eval"
        )
    return model


def init(model: Model, key: Key[Array, ""]) -> Any:
    """Returns new parameters, each in a `Parameter` that names its axes."""
    # Parameters depend on no length; the shortest row in which all are used compiles fastest.
    has_global = model.config.encoder_attention == "transient_global"
    row = jnp.ones((1, model.config.global_block_size if has_global else 1), jnp.int32)
    names = ("input_tokens", "segment_ids")
    batch = {f"{stack}_{name}": row for stack in ("encoder", "decoder") for name in names}
    return model.init(key, batch)["params"]


def check_adapters(model: Model) -> None:
    """Checks that each adapter of a model attaches to something.

    Raises:
        UserError: for the first that attaches to nothing, with the names of what there is.
    """
    if not model.config.adapters:
        return
    kernels = (name for name in parameters(model) if name.endswith("/kernel"))
    heads = {"classifier", "next_sentence"}
    maps = {name.removesuffix("/kernel") for name in kernels} - heads
    attention = {name.removesuffix("/query") for name in maps if name.endswith("attention/query")}
    for adapter in model.config.adapters:
        if isinstance(adapter, InputAdapter):
            if model.classes is not None or model.config.next_sentence:
                raise UserError(
                    f"T5Config.adapters: {adapter} is for models that predict tokens alone, got "
                    f"{type(model).__name__} with classes; use PrefixTuning"
                )
            continue
        of_attention = isinstance(adapter, AttentionAdapter)
        names = sorted(attention if of_attention else maps)
        if not any(map(adapter.attaches_to, names)):
            kind = "attention layer" if of_attention else "map"
            raise UserError(
                f"T5Config.adapters: {adapter} attaches to no {kind}; there are {', '.join(names)}"
            )


def parameters(model: Model) -> dict[str, Parameter]:
    """Returns the model's parameters by name, with their shapes instead of values."""
    return by_name(parameter_tree(model), is_leaf=lambda x: isinstance(x, Parameter))


def computed_once(function: Callable[[Model], _Result]) -> Callable[[Model], _Result]:
    """Returns a function of a model that keeps its results: tracing the layers takes seconds."""
    kept: Any = functools.lru_cache(maxsize=32)(function)

    @functools.wraps(function)
    def result(model: Model) -> _Result:
        known: Any = model
        try:
            hash(known)
        except TypeError:
            # An adapter from outside may hold a list.
            return function(model)
        found: _Result = kept(model)
        return found

    return result


@computed_once
def parameter_tree(model: Model) -> Any:
    """Returns the model's parameters as a tree, with their shapes instead of values."""
    return jax.eval_shape(lambda: init(model, jax.random.key(0)))
