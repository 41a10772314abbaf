"""Where a context has the answer to a question: from texts to tokens."""

import bisect
import re

from t5lite.core.examples import Sentinels, Tokens


def located(
    context: Tokens, answer: str, before: str | None, vocabulary: Sentinels
) -> tuple[int, int] | None:
    """Returns the first and the last token of an answer; None if the context does not have it.

    Args:
        before: the text of the context before the answer; None for the first time that the context
            has it, between the borders of words if possible.
    """
    text = vocabulary.decode(context)
    at = _start_of(text, answer, before)
    if at is None:
        return None

    def length(tokens: int) -> int:
        return len(vocabulary.decode(context[:tokens]))

    numbers = range(len(context) + 1)
    # The most tokens whose text ends at the beginning of the answer, or before it.
    first = bisect.bisect_right(numbers, at, key=length) - 1
    stop = bisect.bisect_left(numbers, at + len(answer), key=length)
    # The first bytes of a character have a text too, a replacement character.
    for end in range(stop, min(stop + 4, len(context) + 1)):
        if answer in vocabulary.decode(context[first:end]):
            return first, end - 1
    return None


def _start_of(text: str, answer: str, before: str | None) -> int | None:
    """Returns where a text has an answer: after as much text as `before`, or the first time.

    Letters and digits are counted: vocabularies change the white space around other characters.

    >>> _start_of("cats: a cat, cat", "cat", None), _start_of("cats: a cat, cat", "cat", "Cats, a")
    (8, 8)
    >>> _start_of("cats: a cat, cat", "cat", ""), _start_of("cats", "dog", "")
    (0, None)
    """
    if before is None:
        whole = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text)
        at = whole.start() if whole else text.find(answer)
        return at if at >= 0 else None
    wanted = sum(map(str.isalnum, before))
    counts = [0]
    for character in text:
        counts.append(counts[-1] + character.isalnum())
    found = [match.start() for match in re.finditer(f"(?={re.escape(answer)})", text)]
    return min(found, key=lambda at: abs(counts[at] - wanted), default=None)
