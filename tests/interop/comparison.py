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

# Relative to the largest value: float32 here, float64 with norms in float32 there.
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


def nested(params: dict[str, Any]) -> Any:
    """Loads arrays by name into a tree."""
    loaded = {name: jnp.asarray(array.load()) for name, array in params.items()}
    return flax.traverse_util.unflatten_dict(loaded, sep="/")


def batch_of(
    outputs: dict[str, np.ndarray], *, start: int = 0, stack: str = "encoder"
) -> dict[str, Any]:
    """The saved inputs as a batch of t5lite.

    Args:
        start: the token before the first target.
        stack: which reads the inputs.
    """
    batch = {
        f"{stack}_input_tokens": outputs["inputs"],
        f"{stack}_segment_ids": outputs["inputs_mask"],
    }
    if "token_types" in outputs:
        batch["encoder_token_types"] = outputs["token_types"]
    if "targets_mask" in outputs:
        targets, mask = outputs["targets"], outputs["targets_mask"]
        batch |= {
            "decoder_input_tokens": np.pad(
                targets[:, :-1], ((0, 0), (1, 0)), constant_values=start
            ),
            "decoder_segment_ids": mask,
        }
    return jax.tree.map(jnp.asarray, batch)


def check(folder: pathlib.Path) -> None:
    """Raises if logits, encoder states, loss or the gradient of a parameter differ."""
    foreign = read_huggingface(folder)
    outputs = dict(np.load(folder / "outputs.npz"))
    model = foreign.model.clone(config=dataclasses.replace(foreign.model.config, dtype="float32"))
    params = nested(dict(foreign.params))
    stack = "encoder" if model.has_encoder else "decoder"
    batch = batch_of(outputs, start=model.config.start_token, stack=stack)
    is_input = outputs["inputs_mask"] > 0
    is_output = outputs.get("targets_mask", outputs["inputs_mask"]) > 0
    if "labels" in outputs:
        # At the first token of each example, as the objective Classification has it.
        is_output = np.zeros_like(is_output)
        is_output[np.arange(len(is_output)), is_input.argmax(1)] = True
        outputs["targets"] = np.broadcast_to(outputs["labels"][:, None], is_output.shape)

    def loss_of(params: Any) -> Any:
        variables = {"params": params}
        if "logits" not in outputs:
            encoded = model.apply(variables, batch, method="encode")
            loss = jnp.sum(jnp.sin(encoded) ** 2 * is_input[..., None])
            return loss, (encoded, encoded)
        logits, kept = model.apply(
            variables,
            batch,
            capture_intermediates=lambda module, name: name == "encode",
            mutable="intermediates",
        )
        encoded = kept["intermediates"]["encode"][0] if model.has_encoder else 0.0
        weights = jnp.asarray(is_output, jnp.float32)
        sums = CrossEntropy(z_loss=0.0).sums(logits, jnp.asarray(outputs["targets"]), weights)
        return sums["loss"] / sums["tokens"], (logits, encoded)

    (loss, (logits, encoded)), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    check_close("loss", loss, outputs["loss"], TOLERANCE)
    if "logits" in outputs:
        theirs = outputs["logits"] if "labels" in outputs else outputs["logits"][is_output]
        check_close("logits", logits[is_output], theirs, TOLERANCE)
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
        scale = None
        if name.endswith("key/bias") and model.config.positions != "rotary":
            # It adds the same to all scores of a query: this gradient is 0 but for rounding.
            scale = np.abs(theirs[name.replace("key/bias", "query/bias")]).max()
        check_close(f"gradient of {name}", grad, theirs[name], GRADIENT_TOLERANCE, scale)


def check_close(
    name: str, ours: Any, theirs: Any, tolerance: float, scale: Any | None = None
) -> None:
    """Errors are relative to the largest value, or to `scale`: others may be near 0 by chance."""
    error = np.abs(np.asarray(ours, np.float64) - theirs).max()
    scale = np.abs(theirs).max() if scale is None else scale
    assert error <= tolerance * scale, (name, error, scale)
    assert scale > 0, f"{name} is 0: nothing is compared"
