"""The README.md beside a model that is written for Hugging Face."""

from collections.abc import Mapping
from typing import Any

from t5lite.core.counts import counted
from t5lite.interop.generation_settings import TRANSFORMERS_VERSION

_CARD = """\
---
library_name: transformers
tags: [t5lite, {model_type}]
---

# {architecture}

Written by t5lite: {parameters}, trained for {steps}. Exports of t5lite are tested with
transformers {version}.

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```

{notes}
"""

_GENERATION = """\
- The decoder starts with token {start}; targets end with {ends}; padding is {pad}.
- `generate` stops after {max_length} tokens, the start included (generation_config.json).
- transformers divides the log-probability of a beam of n tokens by n ** length_penalty. t5lite
  divides by ((5 + n) / 6) ** length_penalty, unless `Decoding.length_normalization = "tokens"`."""

_AUTO = {
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "EncoderModel": "AutoModelForTextEncoding",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "BertModel": "AutoModel",
}


def model_card(
    settings: Mapping[str, Any], generation: Mapping[str, Any] | None, *, parameters: int, step: int
) -> str:
    """Returns the text of the card.

    Args:
        settings: config.json.
        generation: generation_config.json; None for a model without a decoder.
        parameters: how many numbers are written.
        step: training steps taken.
    """
    architecture = settings["architectures"][0]
    auto = next(name for ending, name in _AUTO.items() if architecture.endswith(ending))
    notes = "- It generates no targets: it returns encoder states, or logits."
    if generation is not None:
        notes = _GENERATION.format(
            start=generation.get("decoder_start_token_id", generation.get("bos_token_id")),
            ends=generation["eos_token_id"],
            pad=generation["pad_token_id"],
            max_length=generation["max_length"],
        )
    return _CARD.format(
        model_type=settings["model_type"],
        architecture=architecture,
        parameters=counted(parameters, "parameter"),
        steps=counted(step, "step"),
        version=TRANSFORMERS_VERSION,
        auto=auto,
        notes=notes,
    )
