"""Decoding speed compared with transformers.generate, with the same weights in the same process.

Needs the extra `hf`. Prints one JSON object per measurement and appends it to --results.
"""

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from t5lite.inference.decoding import Decoding
from t5lite.inference.predict import Prompt, make_predict
from t5lite.interop.huggingface import read_huggingface
from t5lite.parallel.mesh import Mesh

EOS = 1
SIZES = {
    "t5_1_0_small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5_1_0_base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "multi30k": {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 4, "num_heads": 4},
}


def main() -> None:
    """Measures greedy and beam search with one size of model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="t5_1_0_small")
    parser.add_argument("--vocab_size", type=int, default=32128)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--results", type=pathlib.Path, required=True)
    flags = parser.parse_args()
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            **SIZES[flags.size], vocab_size=flags.vocab_size, decoder_start_token_id=0
        )
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        foreign = read_huggingface(pathlib.Path(folder))
        params = {name: jnp.asarray(array.load()) for name, array in foreign.params.items()}
    # Replicated, like a restored checkpoint.
    everywhere = jax.NamedSharding(Mesh().make().devices, jax.P())
    nested = jax.device_put(flax.traverse_util.unflatten_dict(params, sep="/"), everywhere)
    config = foreign.model.config.__class__(**{**vars(foreign.model.config), "dtype": "float32"})
    model = foreign.model.clone(config=config)
    inputs = np.random.default_rng(0).integers(2, flags.vocab_size - 100, (flags.rows, 32))
    for beams in (1, 4):
        for tokens in flags.tokens:
            line = compare(theirs, model, nested, inputs, beams, tokens, flags.repeats)
            about = {"size": flags.size, "rows": flags.rows, "devices": jax.device_count()}
            line = {**about, **line}
            print(json.dumps(line), flush=True)
            with flags.results.open("a") as file:
                file.write(json.dumps(line) + "\n")


def compare(
    theirs: Any, model: Any, params: Any, inputs: Any, beams: int, tokens: int, repeats: int
) -> dict[str, Any]:
    """Returns the times of both, measured in turns, and the number of equal rows."""
    # Every target has the full number of tokens.
    penalty = {"length_penalty": 0.0} if beams > 1 else {}
    decoding = Decoding(num_beams=beams, **penalty, min_length=tokens)
    predict = make_predict(
        *(model, Mesh().make(), decoding),
        stop_ids=(EOS,),
        inputs_length=inputs.shape[1],
        targets_length=tokens,
        batch_size=len(inputs),
    )
    prompts = [Prompt(inputs=row.astype(np.int32)) for row in inputs]

    def ours() -> Any:
        return np.array([best.tokens for best, *_ in predict(params, prompts)])

    def generate() -> Any:
        with torch.inference_mode():
            made = theirs.generate(
                input_ids=torch.from_numpy(inputs),
                num_beams=beams,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                length_penalty=0.0,
                do_sample=False,
                eos_token_id=EOS,
            )
        return made.numpy()[:, 1 : tokens + 1]

    compile_seconds, written = timed(ours)
    _, wanted = timed(generate)
    seconds = [(timed(ours)[0], timed(generate)[0]) for _ in range(repeats)]
    mine, other = np.median(seconds, axis=0)
    return {
        "beams": beams,
        "tokens": tokens,
        "first_seconds": round(compile_seconds, 2),
        "t5lite_seconds": round(float(mine), 3),
        "transformers_seconds": round(float(other), 3),
        "ratio": round(float(other / mine), 2),
        "equal_rows": int((written == wanted).all(axis=1).sum()),
        "versions": [jax.__version__, torch.__version__, transformers.__version__],
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the elapsed seconds and the result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
