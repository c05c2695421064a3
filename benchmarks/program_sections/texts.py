"""Synthetic texts of a given number of words, always the same for the same seed."""

from __future__ import annotations

import random
import re

_WORDS = re.findall(
    r"\w+",
    """river mountain winter letter garden market engine teacher window silver island bridge morning forest copper
    harbour village candle thunder mirror orchard captain lantern meadow hammer violin compass blanket station ladder
    pepper canyon basket feather kettle marble saddle tunnel whistle anchor carries follows repairs paints discovers
    remembers leaves crosses measures gathers quietly slowly often never under behind without between""",
)


def text(words: int, *seed: object) -> str:
    """Sentences of about eight words."""
    rng = random.Random(repr(seed))
    out = []
    while words > 0:
        size = min(words, rng.randint(6, 10))
        out.append(" ".join(rng.choice(_WORDS) for _ in range(size)).capitalize() + ".")
        words -= size
    return " ".join(out)
