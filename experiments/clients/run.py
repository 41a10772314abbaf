"""Makes small models, exports them, runs them in other programs and compares the results.

Resumes after an interruption. Needs the packages that README.md names.
"""

import functools
import json
import os
import pathlib

import clients
import ctranslate2
import models
import ours
import torch
from absl import app, flags

WORK = flags.DEFINE_string("work", "runs/clients", "Folder of data, runs and exports.")
RESULTS = flags.DEFINE_string("results", "experiments/clients/results.jsonl", "Appended to.")
ONLY = flags.DEFINE_list("only", [], "Names of models; all if not given.")

QUANTIZATIONS = ("float32", "int8")
# Of CTranslate2, in examples: all of them at once.
BATCH = 100
PIPELINES = {
    "t5_classifier": clients.text_classification,
    "t5gemma_classifier": clients.text_classification,
    "t5gemma_decoder_classifier": clients.text_classification,
    "t5_tagger": clients.token_classification,
    "modernbert_tagger": clients.token_classification,
    "bert": clients.fill_mask,
    "modernbert": clients.fill_mask,
}


def measurements(name, run, exported, records):
    """Yields functions that run the model in a client and return one line of results."""
    if name in clients.PLAIN_TARGETS:
        asked = [{"inputs": r["text"], "targets": r["digits"]} for r in records]
        predicted = ours.infer(run, asked)
        usual = ctranslate2.converters.TransformersConverter
        forms = [
            (f"CTranslate2, {quantization}", quantization, usual, BATCH)
            for quantization in QUANTIZATIONS
        ]
        if name == "t5_gated":
            unscaled = clients.UnscaledConverter
            forms.append(("CTranslate2, float32, unscaled", "float32", unscaled, BATCH))
        if name == "t5gemma_2":
            forms.append(("CTranslate2, float32, batches of 1", "float32", usual, 1))
        for client, *form in forms:
            arguments = (run, exported, predicted, *form)
            yield client, functools.partial(clients.ctranslate2_translator, *arguments), predicted
        yield (
            "transformers generate",
            lambda: clients.transformers_generate(exported, predicted),
            predicted,
        )
        return
    model = ours.Ours(run)
    if name in PIPELINES:
        yield "pipeline", functools.partial(PIPELINES[name], name, model, exported, records), None
        return
    yield (
        "sentence-transformers",
        functools.partial(clients.embeddings, name, model, exported, records),
        None,
    )
    if name == "bert_encoder":
        for quantization in QUANTIZATIONS:
            arguments = (name, model, run, exported, records, quantization)
            client = f"CTranslate2, {quantization}"
            yield client, functools.partial(clients.ctranslate2_encoder, *arguments), None


def main(_):
    work = pathlib.Path(WORK.value).absolute()
    results = pathlib.Path(RESULTS.value)
    # No client may ask the network for anything.
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    known = {json.loads(line)["model"] for line in results.open()} if results.exists() else set()
    models.write_data(work)
    records = clients.jsonl(work / "validation.jsonl")
    for name in models.MODELS:
        if name in known or (ONLY.value and name not in ONLY.value):
            continue
        run, exported = models.make_and_export(work, name)
        lines = []
        for client, measure, predicted in measurements(name, run, exported, records):
            try:
                line = measure()
            except Exception as error:
                # What a client rejects is a result.
                line = {
                    "model": name,
                    "client": client,
                    "error": f"{type(error).__name__}: {error}",
                }
            else:
                if predicted is not None:
                    line = clients.compare_targets(name, client, predicted, line)
            lines.append(line)
            print(json.dumps(line), flush=True)
        with results.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    app.run(main)
