"""The adapters that `t5lite infer` chooses between for each object: `--adapter=NAME=CHECKPOINT`."""

from collections.abc import Mapping
from typing import Any

from t5lite.cli.selection import LATEST, ChosenCheckpoint, check_bases, chosen_checkpoints
from t5lite.core.errors import UserError
from t5lite.data.text.vocabulary import Vocabulary
from t5lite.models.adapted_maps import added_names, with_adapters
from t5lite.models.description import model_of
from t5lite.models.model import Model, generative
from t5lite.models.row_adapters import BindRows, make_bind_rows, stacked_params
from t5lite.parallel.mesh import DeviceMesh
from t5lite.training.base_checkpoint import Base
from t5lite.training.state import abstract_params
from t5lite.training.trainable import split_by_name

_FORM = "NAME=CHECKPOINT, such as --adapter=poems=/data/poems"


def chosen_adapters(flags: Any) -> dict[str, ChosenCheckpoint]:
    """Returns the checkpoint of each `--adapter` by its name; empty without the flag.

    Raises:
        UserError: if a name or a checkpoint is missing or repeated, or `--checkpoint` is given too.
    """
    found: dict[str, ChosenCheckpoint] = {}
    if flags.adapter and flags.checkpoint != LATEST:
        raise UserError(
            "--adapter and --checkpoint are mutually exclusive, got "
            f"--checkpoint={flags.checkpoint}; the base of the adapters is in their checkpoints"
        )
    for text in flags.adapter:
        name, equals, checkpoint = text.partition("=")
        if not (name and equals and checkpoint):
            raise UserError(f"--adapter must be {_FORM}, got --adapter={text}")
        if name in found:
            raise UserError(f"--adapter names {name!r} twice; give each adapter a name of its own")
        chosen = chosen_checkpoints(
            None, checkpoint, flags.average, flags.parameters, base=flags.base
        )
        if len(chosen) != 1:
            raise UserError(f"--adapter={text} must be one checkpoint, got {len(chosen)}")
        check_bases(chosen, flags.base)
        found[name] = chosen[0]
    return found


def adapter_models(chosen: Mapping[str, ChosenCheckpoint], model: Model) -> dict[str, Model]:
    """Returns a model with the adapters that each checkpoint was trained with, by name."""
    models = {}
    for name, one in chosen.items():
        trained = model_of(one.about, f"--adapter={name}")
        models[name] = with_adapters(model, trained.config.adapters)
    return models


def bind_adapters(
    chosen: Mapping[str, ChosenCheckpoint], models: Mapping[str, Model], vocabulary: Vocabulary
) -> BindRows:
    """Returns the function that gives each row its adapter, after all checks of adapters.

    Args:
        models: from `adapter_models`.
        vocabulary: of the first of them.

    Raises:
        UserError: for a model or an adapter that does not fit, with the fingerprints of two bases.
    """
    for name, model in models.items():
        if model.classes is not None:
            raise UserError(
                f"--adapter needs a model that generates targets, got {type(model).__name__} of "
                "classes; name each adapter by --checkpoint"
            )
        chosen[name].check_same(model, vocabulary)
    bind_rows = make_bind_rows([generative(model, "infer") for model in models.values()])
    check_one_base(chosen, models)
    return bind_rows


def check_one_base(chosen: Mapping[str, ChosenCheckpoint], models: Mapping[str, Model]) -> None:
    """Checks that adapters have one base, and that their checkpoints add nothing else to it.

    Args:
        models: from `adapter_models`.

    Raises:
        UserError: for the first that does not fit, with the fingerprints of both bases.
    """
    first: tuple[str, Base] | None = None
    for name, one in chosen.items():
        base = one.checkpoints.base(one.step)
        if base is None:
            raise UserError(
                f"--adapter={name} must be a checkpoint that holds an adapter alone, got "
                f"{one.path}, which is complete; name it by --checkpoint"
            )
        if first is None:
            first = name, base
        if base.fingerprint != first[1].fingerprint:
            raise UserError(
                f"--adapter={name} must have the base of --adapter={first[0]}, "
                f"{first[1].checkpoint} with the fingerprint {first[1].fingerprint}, got "
                f"{base.checkpoint} with {base.fingerprint}; run infer for each base"
            )
        params = one.checkpoints.param_paths(one.step)
        if others := sorted(params.keys() - set(added_names(models[name])) - set(base.parameters)):
            raise UserError(
                f"--adapter={name} must train parameters of adapters of linear maps alone, got "
                f"{others[0]}; name it by --checkpoint"
            )


def adapter_params(
    chosen: Mapping[str, ChosenCheckpoint], models: Mapping[str, Model], mesh: DeviceMesh
) -> Any:
    """Returns the parameters of the base, and those of all adapters stacked in their order.

    Args:
        models: from `adapter_models`.
    """
    params: list[Any] = []
    for name, one in chosen.items():
        model = models[name]
        read = one.params(abstract_params(model, mesh))
        # The base is kept once.
        params.append(split_by_name(read, added_names(model))[0] if params else read)
    return stacked_params(params, list(models.values()))
