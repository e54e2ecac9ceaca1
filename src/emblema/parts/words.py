"""Words of captions: varied at random, every number passed in; and where a caption names a class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from emblema.parts.prompts import clean

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


def named_at(text: str, class_name: str) -> list[tuple[int, int]]:
    """The characters [from, to) at which a text names a class, as a whole word, in the singular or with an s."""
    name = re.escape(clean(class_name).lower())
    return [found.span() for found in re.finditer(rf"\b{name}(?:s|es)?\b", text.lower())]


def exchanged(text: str, old: str, new: str) -> str:
    """A text that names `new` wherever it named the class `old`, many where it named many."""
    text, length = clean(text), len(clean(old))
    for start, end in reversed(named_at(text, old)):
        plural = "s" if end - start > length else ""
        text = text[:start] + clean(new) + plural + text[end:]
    return text


def mentions(tokenizer: Any, text: str, class_names: Sequence[str]) -> dict[int, list[int]]:
    """Classes that a text names, by number, and the tokens of the uncut row that do so."""
    cleaned, places = tokenizer.offsets(text)
    found = {}
    for number, name in enumerate(class_names):
        spans = named_at(cleaned, name)
        tokens = [i for i, (a, b) in enumerate(places) if any(a < end and b > start for start, end in spans)]
        if tokens:
            found[number] = tokens
    return found
