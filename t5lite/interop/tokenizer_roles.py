"""What the files of a tokenizer say of special tokens: their roles, and where inputs have them."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from t5lite.core.errors import UserError, reason_of

ROLES = ("pad_token", "eos_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")
# Tokens that published vocabularies leave unused, in ascending order.
_UNUSED = re.compile(r"(<unused|\[unused|<\|reserved_special_token_)(\d{1,6})(>|\]|\|>)")


@dataclasses.dataclass(frozen=True)
class Frame:
    """The tokens around a text that is encoded alone.

    Args:
        first, last: their texts.
    """

    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


def role_texts(settings: Mapping[str, Any], owner: str) -> dict[str, str]:
    """Returns the texts of the special tokens by their roles.

    Args:
        settings: tokenizer_config.json, over special_tokens_map.json.

    Raises:
        UserError: if one of them is no text.
    """
    texts = {}
    for role in ROLES:
        token = settings.get(role)
        text = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(text, str):
            raise UserError(f"{owner}: {role} must be a text, got {token!r:.80}")
        if text:
            texts[role] = text
    return texts


def frame_of(content: Mapping[str, Any], settings: Mapping[str, Any], owner: str) -> Frame:
    """Returns the tokens that the tokenizer of a folder puts around a text.

    Args:
        content: tokenizer.json, or {} if there is none.
        settings: tokenizer_config.json, whose `add_bos_token` and `add_eos_token` count where
            tokenizer.json has no post-processor.

    Raises:
        UserError: if the two disagree, or the post-processor is an unknown one.
    """
    texts = role_texts(settings, owner)
    asked = {name: settings.get(f"add_{name}_token") for name in ("bos", "eos")}
    wanted = {name: (texts[f"{name}_token"],) if asked[name] else () for name in asked}
    try:
        steps = list(_post_processors(content.get("post_processor"), owner))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{owner}: the post-processor of tokenizer.json is damaged ({reason_of(error)}); load "
            "and save the tokenizer with transformers"
        ) from error
    if not steps:
        return Frame(first=wanted["bos"], last=wanted["eos"])
    frame = Frame(
        first=tuple(text for step in steps for text in step.first),
        last=tuple(text for step in steps for text in step.last),
    )
    for name, found in (("bos", frame.first), ("eos", frame.last)):
        if asked[name] is not None and wanted[name] != found:
            raise UserError(
                f"{owner}: add_{name}_token is {asked[name]!r}, but the post-processor of "
                f"tokenizer.json adds {list(found)}; load and save the tokenizer with transformers"
            )
    return frame


def _post_processors(step: Mapping[str, Any] | None, owner: str) -> Iterator[Frame]:
    """Yields the tokens that each step adds."""
    match step:
        case None | {"type": "ByteLevel"}:
            return
        case {"type": "Sequence", "processors": parts}:
            for part in parts:
                yield from _post_processors(part, owner)
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": first, "sep": last}:
            yield Frame((str(first[0]),), (str(last[0]),))
        case {"type": "TemplateProcessing", "single": single}:
            names = [part.get("SpecialToken", {}).get("id", "") for part in single]
            at = names.index("")
            yield Frame(tuple(names[:at]), tuple(names[at + 1 :]))
        case _:
            raise UserError(
                f"{owner}: the post-processor {step.get('type')} is not supported; supported are "
                "TemplateProcessing, BertProcessing, RobertaProcessing and ByteLevel"
            )


def sentinels_of(texts: Mapping[int, str]) -> tuple[int | None, int]:
    """Returns the id of the first sentinel and the number of them; (None, 0) for none.

    They are the tokens `<extra_id_N>` if there are any, else the unused tokens with consecutive
    ids: sentinel 0 is the last of them.

    Args:
        texts: of all tokens by their ids.

    >>> sentinels_of({5: "<unused0>", 6: "<unused1>", 7: "a", 8: "<unused2>"})
    (6, 2)
    """
    ids = {text: number for number, text in texts.items()}
    if (first := ids.get("<extra_id_0>")) is not None:
        count = 1
        while texts.get(first - count) == f"<extra_id_{count}>":
            count += 1
        return first, count
    runs: list[tuple[int, int]] = []
    previous: tuple[int, str, int] | None = None
    for number in sorted(texts):
        match = _UNUSED.fullmatch(texts[number])
        if match is None:
            continue
        if previous == (number - 1, match[1], int(match[2]) - 1):
            runs[-1] = (number, runs[-1][1] + 1)
        else:
            runs.append((number, 1))
        previous = (number, match[1], int(match[2]))
    longest = max(runs, key=lambda run: run[1], default=(0, 0))
    return longest if longest[1] > 1 else (None, 0)


def special_fields(
    frame: Frame, texts: Mapping[str, str], ids: Mapping[str, int], owner: str, *, has_encoder: bool
) -> dict[str, Any]:
    """Returns the fields of `SpecialTokens` that the files of a tokenizer name.

    Args:
        texts: of the roles.
        ids: of all tokens.
        has_encoder: whether the model has one, whose inputs begin with a token of their own.

    Raises:
        UserError: if a role has no id, or inputs begin or end with other tokens than one.
    """
    if missing := [role for role, text in texts.items() if text not in ids]:
        raise UserError(
            f"{owner}: {missing[0]} {texts[missing[0]]!r} is no token of the vocabulary; load and "
            "save the tokenizer with transformers"
        )
    end = texts.get("eos_token", texts.get("sep_token"))
    if len(frame.first) > 1 or frame.last not in ((), (end,)):
        raise UserError(
            f"{owner}: inputs must begin with at most one token and end with {end!r} or nothing, "
            f"got {list(frame.first)} and {list(frame.last)}"
        )
    found: dict[str, Any] = {"end_inputs": bool(frame.last)}
    if frame.first and has_encoder:
        found["bos_id"] = ids[frame.first[0]]
    if "mask_token" in texts:
        found["mask_id"] = ids[texts["mask_token"]]
    return found
