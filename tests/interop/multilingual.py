"""Text in many scripts, for tokenizers."""

import random

# First and last characters of scripts and of symbols.
SCRIPTS = {
    "latin": (0xC0, 0x17F),
    "greek": (0x391, 0x3C9),
    "cyrillic": (0x400, 0x45F),
    "hebrew": (0x5D0, 0x5EA),
    "arabic": (0x620, 0x64A),
    "devanagari": (0x905, 0x939),
    "tamil": (0xB85, 0xBB9),
    "thai": (0xE01, 0xE30),
    "hangul": (0xAC00, 0xACFF),
    "kana": (0x3041, 0x30FF),
    "han": (0x4E00, 0x4EFF),
    "fullwidth": (0xFF01, 0xFF5E),
    "emoji": (0x1F600, 0x1F64F),
    "punctuation": (0x2010, 0x205E),
    "letterlike": (0x2100, 0x214F),
    "control": (0x1, 0x1F),
}
# Spaces, and what SentencePiece's usual normalization makes spaces of.
SPACES = (" ", " ", "  ", "\t", "\u3000", "\n", "\u00a0", "\u200b")
EXTRAS = ("UPPER \U0001f600", "e\u0301 i\u0308", "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea")


def lines(count: int, seed: int, scripts: tuple[str, ...] = tuple(SCRIPTS)) -> list[str]:
    """Returns random lines, each of one script with English between its words."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        first, last = SCRIPTS[scripts[number % len(scripts)]]
        words = [
            "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 6)))
            + rng.choice(["", "", "the language", " 12", *EXTRAS])
            for _ in range(rng.randint(1, 6))
        ]
        line = rng.choice(["", "", " ", "  "]) + words[0]
        for word in words[1:]:
            line += rng.choice(SPACES) + word
        made.append(line + rng.choice(["", "", " "]))
    return made
