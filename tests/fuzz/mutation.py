"""Bytes that resemble a file and are damaged: what a crash, an editor or another program leaves."""

import random
import re
from collections.abc import Iterator, Sequence

# What a parser of text or JSON may not expect.
TOKENS = (
    *(b"\0", b"\n", b"\r", b"\t", b" ", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80"),
    *("\u2028".encode(), "\u00e9".encode(), b"\x1b[2J", b"\\ud800", b"\\u0000"),
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1.5", b"-0.0", b"18446744073709551616"),
    *(b"null", b"true", b"false", b'""', b'"x"', b"[]", b"{}", b"[1]", b'{"a": 1}', b"[[]]"),
    *(b"(", b")", b"[", b"]", b"{", b"}", b",", b":", b"=", b'"', b"'", b"@", b"%", b"#", b"\\"),
    *(b"..", b"/", b"~", b"*", b"$(x)", b"__class__", b"None", b"True"),
)
# Numbers and nesting without end. Rare, because most of their time goes into copying.
GIANTS = (b"9" * 5000, b"[" * 20_000, b'{"a":' * 5000, b"(" * 5000, b"-" * 5000, b"x" * 100_000)
GIANT_FRACTION = 0.01
# A string, a number or a word: what has one type and may get another.
SCALAR = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[-+.\w]+')


def mutations(samples: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Yields damaged copies of `samples` without end, the same ones for one seed.

    Each has one to four changes: flipped bits, bytes deleted, repeated or replaced, a truncation,
    the end of another sample, an inserted token, or a scalar of another type.
    """
    random_numbers = random.Random(seed)
    while True:
        changed = bytearray(random_numbers.choice(samples))
        for _ in range(random_numbers.choice((1, 1, 2, 3, 4))):
            _change(changed, samples, random_numbers)
        yield bytes(changed)


def _change(changed: bytearray, samples: Sequence[bytes], numbers: random.Random) -> None:
    kind = numbers.randrange(12)
    start = numbers.randrange(len(changed) + 1)
    # Most changes are small, some cover half of the file.
    stop = min(start + int(len(changed) ** numbers.random()), len(changed))
    if kind == 0 and start < len(changed):
        changed[start] ^= 1 << numbers.randrange(8)
    elif kind == 1:
        changed[start:stop] = numbers.randbytes(stop - start)
    elif kind == 2:
        del changed[start:stop]
    elif kind == 3:
        changed[start:start] = changed[start:stop]
    elif kind == 4:
        del changed[start:]
    elif kind == 5:
        other = numbers.choice(samples)
        changed[start:] = other[numbers.randrange(len(other) + 1) :]
    elif kind == 6:
        changed[start:start] = _token(numbers)
    elif scalars := list(SCALAR.finditer(changed)):
        scalar = numbers.choice(scalars)
        changed[scalar.start() : scalar.end()] = _token(numbers)


def _token(numbers: random.Random) -> bytes:
    return numbers.choice(GIANTS if numbers.random() < GIANT_FRACTION else TOKENS)
