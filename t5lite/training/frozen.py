"""Models of a run that do not train: opened and checked, then loaded as inputs of the step.

They are in no `TrainState`: no step changes or donates them, they have no optimizer state, and a
checkpoint of the run has only the path and the fingerprint of theirs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.core.errors import UserError
from t5lite.core.fields import field_name
from t5lite.models.description import model_of
from t5lite.models.flops import forward_flops
from t5lite.models.frozen import FrozenModel, JoinedRows, SameRows
from t5lite.models.model import Model
from t5lite.models.token_adapters import prompt_length
from t5lite.parallel.mesh import DeviceMesh
from t5lite.parallel.processes import from_first_process
from t5lite.parallel.sharding import check_lengths
from t5lite.training.checkpoint_errors import read_together
from t5lite.training.checkpoint_names import open_checkpoint
from t5lite.training.run import Run
from t5lite.training.state import abstract_params
from t5lite.training.stored_checkpoints import StoredCheckpoints
from t5lite.training.teacher import Teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenPart:
    """A model of a run that does not train, before its parameters are loaded.

    Args:
        params: shapes, dtypes and shardings.
        rows: how it reads a batch.
        vocab_size: logits of the model that trains.
        flops_per_row: of one row forward, by the formula.
        source, step: its checkpoint.
        fingerprint: the same for equal parameters, wherever they are.
    """

    model: Model
    params: Any
    rows: SameRows | JoinedRows
    vocab_size: int
    flops_per_row: int
    source: StoredCheckpoints
    step: int
    fingerprint: str

    @property
    def checkpoint(self) -> str:
        """The directory of the checkpoint."""
        return self.source.path(self.step)

    def with_params(self, params: Any) -> FrozenModel:
        """Returns the model with its parameters."""
        return FrozenModel(self.model, params, self.rows, self.vocab_size)


def open_frozen(run: Run, mesh: DeviceMesh) -> dict[str, FrozenPart]:
    """Returns the models of a run that do not train, by name.

    Parameters are read only of a checkpoint without checksums, for its fingerprint.

    Raises:
        UserError: if a checkpoint is missing, or its model does not fit the run or the mesh.
    """
    return {} if run.teacher is None else {"teacher": _open_teacher(run, run.teacher, mesh)}


def load_frozen(parts: Mapping[str, FrozenPart], log: Callable[[str], None]) -> dict[str, Any]:
    """Returns the parameters of models that do not train, by name; all processes must call it.

    Raises:
        UserError: if a parameter is not finite.
    """
    loaded = {}
    for name, part in parts.items():
        log(f"loading the {name} {part.checkpoint}")
        params = part.source.restore_params(part.step, part.params)
        finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree))
        if not all(jax.tree.leaves(jax.device_get(finite(params)))):
            raise UserError(
                f"the {name} {part.checkpoint} must have finite parameters, got some that are not; "
                "choose another checkpoint"
            )
        loaded[name] = params
    return loaded


def describe_frozen(parts: Mapping[str, FrozenPart]) -> dict[str, Any]:
    """Returns what a checkpoint of the run says of them."""
    return {
        name: {"checkpoint": part.checkpoint, "fingerprint": part.fingerprint}
        for name, part in parts.items()
    }


def check_same_frozen(
    about: Mapping[str, Any], parts: Mapping[str, FrozenPart], owner: str
) -> None:
    """Checks that a run trains with the models with which `owner` was trained.

    Raises:
        UserError: for the first that is another one.
    """
    saved = about.get("frozen", {})
    mine = describe_frozen(parts)
    for name in sorted({*saved, *mine}):
        prints = [each.get(name, {}).get("fingerprint") for each in (saved, mine)]
        if prints[0] != prints[1]:
            was, now = (_shown(each.get(name)) for each in (saved, mine))
            raise UserError(
                f"{owner} was trained with the {name} {was}, got {now}; use that one, or another "
                "MODEL_DIR with train.initial_checkpoint"
            )


def _shown(described: Mapping[str, str] | None) -> str:
    return f"{described['checkpoint']} ({described['fingerprint']})" if described else "none"


def _open_teacher(run: Run, teacher: Teacher, mesh: DeviceMesh) -> FrozenPart:
    owner = f"{field_name(teacher, 'checkpoint')} {teacher.checkpoint}"
    source, step = open_checkpoint(teacher.checkpoint)
    # The latest may change between processes, if the teacher still trains.
    (step,) = from_first_process([step])
    about = read_together(source.path(step), lambda: source.about(step))
    saved = model_of(about, owner)
    ours = run.model.config
    # What belongs to a run, and not to a model, is that of this run.
    config = dataclasses.replace(
        saved.config,
        dropout_rate=0.0,
        dtype=teacher.dtype or ours.dtype,
        attention=ours.attention,
        remat="none",
        scan_unroll=ours.scan_unroll,
    )
    model = saved.clone(config=config)
    _check_vocabulary(run, about, owner)
    rows = _rows(run, teacher, model, owner)
    lengths = dict(run.layout.lengths)
    flops = 0
    if isinstance(rows, JoinedRows):
        # Logits are computed for the targets alone.
        unused = rows.length - lengths["decoder_target_tokens"]
        flops -= 2 * config.embed_dim * config.vocab_size * unused
        lengths = {"decoder_input_tokens": rows.length}
        check_lengths(mesh, {f"the rows of {owner}": rows.length})
    flops += forward_flops(model, lengths)
    longest = max(lengths.values())
    if config.max_positions is not None and longest > config.max_positions:
        raise UserError(
            f"{owner} must have T5Config.max_positions of at least the tokens of its rows "
            f"({longest}), got {config.max_positions}; make the objective's lengths shorter"
        )
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, jnp.dtype(teacher.param_dtype), sharding=x.sharding
        ),
        abstract_params(model, mesh),
    )
    return FrozenPart(
        model=model,
        params=params,
        rows=rows,
        vocab_size=ours.vocab_size if model.classes is None else model.classes.count,
        flops_per_row=flops,
        source=source,
        step=step,
        fingerprint=source.fingerprint(step),
    )


def _rows(run: Run, teacher: Teacher, model: Model, owner: str) -> SameRows | JoinedRows:
    """Returns how a teacher reads the batches of a run, after all checks of that."""
    eos_id = run.task.vocabulary.eos_id
    config = model.config
    prompts = [prompt_length(each.config.adapters) for each in (run.model, model)]
    if prompts[0] != prompts[1] or (any(prompts) and run.model.layout != model.layout):
        raise UserError(
            f"{owner} must be of the kind of the model and have as many vectors in its prompt "
            f"({prompts[0]}), got {prompts[1]} of {type(model).__name__}; use PrefixTuning instead"
        )
    if run.model.layout == "encoder_decoder" and model.layout == "decoder":
        if teacher.start_token is not None and run.packed:
            raise UserError(
                f"{field_name(teacher, 'start_token')} must be None with train.packed, whose rows "
                f"hold several examples, got {teacher.start_token}"
            )
        if (teacher.start_token or 0) >= config.vocab_size:
            raise UserError(
                f"{field_name(teacher, 'start_token')} must be under the T5Config.vocab_size of "
                f"{owner} ({config.vocab_size}), got {teacher.start_token}"
            )
        unknown = None if teacher.predicts_eos else eos_id
        return JoinedRows(
            length=run.joined_length, start_token=teacher.start_token, unknown_eos=unknown
        )
    if run.model.layout != model.layout:
        raise UserError(
            f"{owner} must be of the kind of the model, {type(run.model).__name__}, or "
            f"decoder-only beside an encoder-decoder, got {type(model).__name__}"
        )
    if teacher.start_token is not None:
        raise UserError(
            f"{field_name(teacher, 'start_token')} is for a decoder-only teacher of an "
            f"encoder-decoder, got {teacher.start_token} with {type(model).__name__}"
        )
    if model.has_decoder and config.start_token != run.model.config.start_token:
        raise UserError(
            f"{owner} must have the T5Config.start_token of the model "
            f"({run.model.config.start_token}), got {config.start_token}"
        )
    if _decided(model) != _decided(run.model):
        raise UserError(
            f"{owner} must decide between what the model does, {_decided(run.model)}, got "
            f"{_decided(model)}"
        )
    if run.packed and config.encoder_attention == "transient_global":
        raise UserError(
            f"{owner} has T5Config.encoder_attention 'transient_global', whose global tokens would "
            "mix several examples; bind train.packed = False"
        )
    return SameRows(unknown_eos=eos_id if teacher.predicts_eos is False else None)


def _decided(model: Model) -> str:
    """Returns what the logits of a model decide between."""
    classes = model.classes
    if classes is None:
        return "tokens"
    names = f" {list(classes.names)}" if classes.names else ""
    each = "word" if classes.per_token else "example"
    return f"{classes.count} {classes.structure} classes{names} of each {each}"


def _check_vocabulary(run: Run, about: Mapping[str, Any], owner: str) -> None:
    vocabulary = run.task.vocabulary
    saved = about.get("vocabulary_fingerprint")
    if vocabulary.is_stand_in or saved == vocabulary.fingerprint:
        return
    if saved is None:
        raise UserError(
            f"{owner} must have the vocabulary of the run, got a checkpoint without one; convert "
            "it again with convert.vocabulary"
        )
    raise UserError(
        f"{owner} must have the vocabulary of the run, {vocabulary.fingerprint}, got {saved}; "
        "train with the vocabulary of the teacher, or choose another teacher"
    )
