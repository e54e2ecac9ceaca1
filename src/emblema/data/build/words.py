"""Captions: names and titles turned into plain lower-case words."""

from __future__ import annotations

import re
import unicodedata

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NOISE = re.compile(r"[“”\"’'`´]|\b(?:svg|png|remix|clip ?art|openclipart|inkscape)\b")
_NUMBER = re.compile(r"(?:\s+(?:#|no\.?|nr\.?|v|version)?\s*\d{1,4}[a-z]?)+$")


def plain(name: str) -> str:
    """A name, slug, file stem or label as lower-case words: `"Cat_face-2"` gives `"cat face 2"`."""
    text = unicodedata.normalize("NFKC", name)
    text = _CAMEL.sub(" ", text).lower().replace("’s", "s").replace("'s", "s")
    text = _NOISE.sub(" ", text).replace("&", " and ")
    text = re.sub(r"[_\-–—/\\|:;,.!?()\[\]{}*+~=<>^%$@#]+", " ", text)
    return re.sub(r"\s+", " ", text).strip()


def caption(name: str) -> str:
    """`plain` without a trailing serial number: `"cat face 2"` gives `"cat face"`; a bare number stays."""
    text = plain(name)
    return _NUMBER.sub("", text) or text


def squash(name: str) -> str:
    """A key for comparing names: letters and digits only, lower case."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", name.lower()))


def has_phrase(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text` as whole words, singular or with a plural s."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?:s|es)?(?!\w)", text) is not None


def unique(texts: list[str], leave_out: str = "", limit: int = 16) -> list[str]:
    """The distinct non-empty texts in their first order, without `leave_out`, at most `limit`."""
    seen = dict.fromkeys(t for t in texts if t and t != leave_out)
    return list(seen)[:limit]


def listed(text: str) -> frozenset[str]:
    """The words of a literal table, which reads better as text than as a list."""
    return frozenset(text.split())
