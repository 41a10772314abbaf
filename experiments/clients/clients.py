"""Runs an exported model in each client, and compares its results with t5lite's."""

import json
import math
import re

import ctranslate2
import numpy as np
import ours
import sentence_transformers
import torch
import transformers

PLAIN_TARGETS = ("t5_tied", "t5_gated", "umt5", "t5gemma", "t5gemma_no_caps", "t5gemma_2")


class UnscaledConverter(ctranslate2.converters.TransformersConverter):
    """Converts T5 1.1, whose logits are not scaled."""

    def _load(self):
        spec = super()._load()
        spec.decoder.scale_outputs = np.float32(1)
        return spec


def ctranslate2_translator(run, exported, records, quantization, converter_class, batch_size):
    """Greedy predictions, and scores of the targets, of `ctranslate2.Translator`."""
    folder = f"{run}_ct2_{quantization}"
    converter = converter_class(str(exported))
    converter.convert(folder, quantization=quantization, force=True)
    client = ctranslate2.Translator(folder, compute_type=quantization, intra_threads=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    inputs = [tokenizer.convert_ids_to_tokens(tokenizer(r["inputs"]).input_ids) for r in records]
    made = client.translate_batch(
        inputs,
        max_batch_size=batch_size,
        beam_size=1,
        max_decoding_length=ours.TARGETS_LENGTH,
    )
    texts = [tokenizer.decode(tokenizer.convert_tokens_to_ids(m.hypotheses[0])) for m in made]
    targets = [tokenizer.convert_ids_to_tokens(tokenizer(r["targets"]).input_ids) for r in records]
    # The client adds the end of a sequence itself.
    targets = [[t for t in target if t != tokenizer.eos_token] for target in targets]
    scores = [
        sum(s.log_probs) for s in client.score_batch(inputs, targets, max_batch_size=batch_size)
    ]
    return texts, scores


def transformers_generate(exported, records):
    """Greedy predictions of `generate`, and scores of the targets."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    texts = []
    scores = []
    end = torch.tensor([[tokenizer.eos_token_id]])
    for record in records:
        inputs = tokenizer(record["inputs"], return_tensors="pt")
        with torch.inference_mode():
            made = model.generate(**inputs, do_sample=False, max_length=1 + ours.TARGETS_LENGTH)
            ids = tokenizer(record["targets"], return_tensors="pt", add_special_tokens=False)
            labels = torch.cat([ids.input_ids.long(), end], dim=1)
            logits = model(**inputs, labels=labels).logits
        texts.append(tokenizer.decode(made[0][1:]))
        logs = torch.log_softmax(logits.double(), -1)
        scores.append(logs.gather(-1, labels[..., None]).sum().item())
    return texts, scores


def _bare(text):
    """Returns a text without spaces, and without tokens that have no text of their own."""
    return re.sub(r"</s>|<pad>|<unk>|\s", "", text)


def compare_targets(name, client, records, results):
    """Returns the measurements of one client with an encoder-decoder."""
    texts, scores = results
    texts = [_bare(text) for text in texts]
    differences = [abs(s - r["score"]) for s, r in zip(scores, records, strict=True)]
    equal = sum(t == _bare(r["prediction"]) for t, r in zip(texts, records, strict=True))
    return {
        "model": name,
        "client": client,
        "examples": len(records),
        "equal": equal,
        "correct": sum(t == r["targets"] for t, r in zip(texts, records, strict=True)),
        "correct_in_t5lite": sum(r["prediction"] == r["targets"] for r in records),
        "largest_difference": max(differences),
        "of": "log-probability of a target, nats",
    }


def of_probabilities(name, client, pairs, **more):
    """Returns the measurements of a pipeline.

    Args:
        pairs: for each decision ours and the client's: class and probability.
    """
    differences = [float(abs(one[1] - other[1])) for one, other in pairs]
    return {
        "model": name,
        "client": client,
        "examples": len(pairs),
        "equal": sum(one[0] == other[0] for one, other in pairs),
        "largest_difference": max(differences),
        "of": "probability",
        **more,
    }


def text_classification(name, model, exported, records):
    """Classes of `pipeline("text-classification")`."""
    pipe = transformers.pipeline("text-classification", model=str(exported))
    names = model.model.classes.names
    pairs = []
    correct = 0
    for record in records:
        logs = ours.log_softmax(model.logits(model.ids(record["text"])))[0]
        (found,) = pipe(record["text"])
        pairs.append(
            ((names[logs.argmax()], math.exp(logs.max())), (found["label"], found["score"]))
        )
        correct += found["label"] == record["parity"]
    return of_probabilities(name, "pipeline text-classification", pairs, correct=correct)


def token_classification(name, model, exported, records):
    """Classes of tokens of `pipeline("token-classification")`."""
    pipe = transformers.pipeline("token-classification", model=str(exported), ignore_labels=[])
    names = model.model.classes.names
    pairs = []
    for record in records:
        ids = model.ids(record["text"])
        logs = ours.log_softmax(model.logits(ids))
        for found in pipe(record["text"]):
            # Of special tokens the pipeline returns nothing.
            of_token = logs[found["index"]]
            pairs.append(
                (
                    (names[of_token.argmax()], math.exp(of_token.max())),
                    (found["entity"], found["score"]),
                )
            )
    return of_probabilities(name, "pipeline token-classification", pairs)


def fill_mask(name, model, exported, records):
    """The token of one masked word of each text of `pipeline("fill-mask")`."""
    pipe = transformers.pipeline("fill-mask", model=str(exported), top_k=1)
    mask = model.vocabulary.mask_id
    pairs = []
    for record in records:
        words = record["text"].split()
        words[len(words) // 2] = pipe.tokenizer.mask_token
        text = " ".join(words)
        ids = model.ids(text)
        logs = ours.log_softmax(model.logits(ids))[list(ids).index(mask)]
        (found,) = pipe(text)
        pairs.append(((int(logs.argmax()), math.exp(logs.max())), (found["token"], found["score"])))
    return of_probabilities(name, "pipeline fill-mask", pairs)


def embeddings(name, model, exported, records):
    """Embeddings of `SentenceTransformer`, which are means over the tokens of a text."""
    client = sentence_transformers.SentenceTransformer(str(exported), device="cpu")
    texts = [record["text"] for record in records]
    theirs = client.encode(texts)
    wanted = np.stack([model.states(model.ids(text)).mean(0) for text in texts])
    return of_states(name, "sentence-transformers", wanted, theirs)


def ctranslate2_encoder(name, model, run, exported, records, quantization):
    """States of `ctranslate2.Encoder`, of BERT."""
    folder = f"{run}_ct2_{quantization}"
    converter = ctranslate2.converters.TransformersConverter(str(exported))
    converter.convert(folder, quantization=quantization, force=True)
    client = ctranslate2.Encoder(folder, compute_type=quantization, intra_threads=1)
    wanted = []
    theirs = []
    for record in records:
        ids = model.ids(record["text"])
        wanted.append(model.states(ids))
        theirs.append(np.array(client.forward_batch([ids.tolist()]).last_hidden_state)[0])
    return of_states(
        name, f"CTranslate2, {quantization}", np.concatenate(wanted), np.concatenate(theirs)
    )


def of_states(name, client, wanted, theirs):
    """Returns the measurements of vectors, relative to the largest number."""
    cosines = (wanted * theirs).sum(-1)
    cosines = cosines / np.linalg.norm(wanted, axis=-1) / np.linalg.norm(theirs, axis=-1)
    return {
        "model": name,
        "client": client,
        "examples": len(wanted),
        "least_cosine": float(cosines.min()),
        "largest_difference": float(np.abs(wanted - theirs).max() / np.abs(wanted).max()),
        "of": "state, relative to the largest",
    }


def jsonl(path):
    """Returns the records of a file."""
    return [json.loads(line) for line in path.open()]
