"""Compares a checkpoint and the outputs of transformers with the model that is read from it."""

import dataclasses
import pathlib
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from t5lite.interop.huggingface import read_huggingface
from t5lite.losses.cross_entropy import CrossEntropy
from t5lite.models.architectures import EncoderOnly

# Relative to the largest value: float32 here, float64 with norms in float32 there.
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


def nested(params: dict[str, Any]) -> Any:
    """Loads arrays by name into a tree."""
    loaded = {name: jnp.asarray(array.load()) for name, array in params.items()}
    return flax.traverse_util.unflatten_dict(loaded, sep="/")


def batch_of(outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The saved inputs as a batch of t5lite."""
    batch = {
        "encoder_input_tokens": outputs["inputs"],
        "encoder_segment_ids": outputs["inputs_mask"],
    }
    if "targets_mask" in outputs:
        targets, mask = outputs["targets"], outputs["targets_mask"]
        batch |= {
            "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
            "decoder_segment_ids": mask,
        }
    return jax.tree.map(jnp.asarray, batch)


def check(folder: pathlib.Path) -> None:
    """Raises if logits, encoder states, loss or the gradient of a parameter differ."""
    foreign = read_huggingface(folder)
    outputs = dict(np.load(folder / "outputs.npz"))
    model = foreign.model.clone(config=dataclasses.replace(foreign.model.config, dtype="float32"))
    params, batch = nested(dict(foreign.params)), batch_of(outputs)
    is_input = outputs["inputs_mask"] > 0
    is_output = outputs.get("targets_mask", outputs["inputs_mask"]) > 0

    def loss_of(params: Any) -> Any:
        variables = {"params": params}
        encoded = model.apply(variables, batch, method="encode")
        if isinstance(model, EncoderOnly) and model.classes is None:
            loss = jnp.sum(jnp.sin(encoded) ** 2 * is_input[..., None])
            return loss, (encoded, encoded)
        logits = model.apply(variables, batch)
        weights = jnp.asarray(is_output, jnp.float32)
        sums = CrossEntropy(z_loss=0.0).sums(logits, jnp.asarray(outputs["targets"]), weights)
        return sums["loss"] / sums["tokens"], (logits, encoded)

    (loss, (logits, encoded)), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    check_close("loss", loss, outputs["loss"], TOLERANCE)
    if "logits" in outputs:
        check_close("logits", logits[is_output], outputs["logits"][is_output], TOLERANCE)
    if "encoded" in outputs:
        check_close("encoded", encoded[is_input], outputs["encoded"][is_input], TOLERANCE)

    theirs = {n: a.load() for n, a in read_huggingface(folder / "gradients").params.items()}
    ours = flax.traverse_util.flatten_dict(grads, sep="/")
    assert theirs.keys() == ours.keys()
    if "tied_unscaled" in folder.name:
        # One matrix there is two here, so the gradients add up.
        both = ours.pop("decoder/logits_dense/kernel").T + ours["token_embedder/embedding"]
        ours["token_embedder/embedding"] = both
    for name, grad in ours.items():
        check_close(f"gradient of {name}", grad, theirs[name], GRADIENT_TOLERANCE)


def check_close(name: str, ours: Any, theirs: Any, tolerance: float) -> None:
    """Errors are relative to the largest value: others may be near 0 by chance."""
    error = np.abs(np.asarray(ours, np.float64) - theirs).max()
    assert error <= tolerance * np.abs(theirs).max(), (name, error, np.abs(theirs).max())
    assert np.abs(theirs).max() > 0, f"{name} is 0: nothing is compared"
