"""The adapters that `t5lite infer` chooses between for each object: `--adapter=NAME=CHECKPOINT`."""

from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.cli.selection import LATEST, ChosenCheckpoint, check_bases, chosen_checkpoints
from t5lite.core.errors import UserError
from t5lite.data.text.vocabulary import Vocabulary
from t5lite.models.adapted_maps import added_names
from t5lite.models.model import Model, generative
from t5lite.models.row_adapters import BindRows, make_bind_rows, stacked_params
from t5lite.training.base_checkpoint import Base
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


def bind_adapters(
    chosen: Mapping[str, ChosenCheckpoint], model: Model, vocabulary: Vocabulary
) -> BindRows:
    """Returns the function that gives each row its adapter, after all checks of adapters.

    Args:
        model, vocabulary: of the first of them.

    Raises:
        UserError: for a model or an adapter that does not fit, with the fingerprints of two bases.
    """
    if model.classes is not None:
        raise UserError(
            f"--adapter needs a model that generates targets, got {type(model).__name__} of "
            "classes; name each adapter by --checkpoint"
        )
    for one in chosen.values():
        one.check_same(model, vocabulary)
    bind_rows = make_bind_rows(generative(model, "infer"))
    check_one_base(chosen, model)
    return bind_rows


def check_one_base(chosen: Mapping[str, ChosenCheckpoint], model: Model) -> None:
    """Checks that adapters have one base, and that their checkpoints add nothing else to it.

    Args:
        model: of all of them.

    Raises:
        UserError: for the first that does not fit, with the fingerprints of both bases.
    """
    added = set(added_names(model))
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
        if others := sorted(params.keys() - added - set(base.parameters)):
            raise UserError(
                f"--adapter={name} must train parameters of adapters of linear maps alone, got "
                f"{others[0]}; name it by --checkpoint"
            )


def adapter_params(chosen: Sequence[ChosenCheckpoint], model: Model, shapes: Any) -> Any:
    """Returns the parameters of the base, and those of all adapters stacked in their order.

    Args:
        shapes: abstract parameters of the model with one adapter.
    """
    names = added_names(model)
    whole = chosen[0].params(shapes)
    # The base is kept once.
    own = [split_by_name(one.params(shapes), names)[0] for one in chosen[1:]]
    return stacked_params([whole, *own], names)
