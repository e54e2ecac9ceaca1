"""Views of words: a caption varied at random, every number passed in."""

from __future__ import annotations

from collections.abc import Sequence

EDA_NUMBERS = 35  # random numbers that `eda` takes; words beyond 32 are never deleted


def eda(text: str, noise: Sequence[float], deletion: float = 0.1) -> str:
    """Easy data augmentation: swap two words, or delete each with a small probability.

    A text of one word stays as it is, and one word at least is kept. The third operation of the paper, synonym
    replacement, needs WordNet and is left out.

    Args:
        noise: `EDA_NUMBERS` uniform numbers.
        deletion: the probability that a word is deleted.

    Wei and Zou 2019 (1901.11196).
    """
    words = text.split()
    if len(words) < 2:
        return text
    kind, a, b, *each = noise
    i = int(a * len(words))
    if kind < 0.5:
        j = (i + 1 + int(b * (len(words) - 1))) % len(words)  # another place
        words[i], words[j] = words[j], words[i]
        return " ".join(words)
    kept = [w for k, w in enumerate(words) if k >= len(each) or each[k] >= deletion]
    return " ".join(kept or [words[i]])
