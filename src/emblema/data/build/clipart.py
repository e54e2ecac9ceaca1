"""Clip-art of the Open Clip Art Library: SVG files with a title and keywords of their own."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .icons import is_brand
from .packages import PACKAGES, unpacked
from .raster import Drawing
from .words import caption, listed, plain, unique

FAMILY = "openclipart"
LICENCE = "CC-PDDC"  # Creative Commons Public Domain Dedication and Certification, says the package
# Left out: trademarks, doubles, and folders that hold paint (patterns, gradients) or half-empty frames.
LEFT_OUT_FOLDERS = (
    "logos",
    "special",
    "unsorted/duplicates",
    "people/clothing/pantyhose",
    "computer/icons/etiquette-theme",
    "computer/icons/lemon-theme",
    "computer/buttons",
    "buttons",
    "shapes/flowchart",
    "computer/diagrams",
    "signs_and_symbols/led",
    "signs_and_symbols/flags/semaphore",
    "computer/icons/flat-theme",
    "recreation/games/cards",
)
# Left out: hate symbols, nudity, cruelty.
LEFT_OUT_WORDS = listed("""
    nazi nazis swastika hitler ss reich wehrmacht fascist kkk klan confederate sex sexy nude naked
    erotic penis vagina porn bdsm breast breasts boobs topless suicide hanging terrorist slave execution
""")
_POOR_TITLE = re.compile(
    r"^(?:architetto|francesco|untitled|unnamed|drawing|image|new document|title|test|no title"
    r"|unknown|na|n a|clip ?art|svg|page)?[\s\d]*$|http|www|\.(?:svg|png)$"
)
# Titles of a whole collection instead of one picture.
_COLLECTION = re.compile(
    r"^(?:part of the .*|etiquette icons?.*|gold theme|various cliparts?|simple arrows?|gramastar|"
    r"cartoons?|logos?|icons?|clip ?arts?|.* collection.*|.* theme|lemon .*)$"
)
_BY = re.compile(r"^by (?:nicu buculei|[a-z]+ [a-z]+) ")
_MARKERS = listed(
    "unsorted clipart clip art svg misc none office icon icons hash menu mapsym networksym sign "
    "symbol religholiday miscellany"
)
COMMON_TITLE = 10  # a title on so many files names their collection


@dataclass(frozen=True)
class Leaf:
    """One SVG file with the words that it brings along."""

    path: Path
    folder: str  # inside the library, such as "animals/birds"
    svg: str
    title: str
    description: str
    keywords: list[str]
    creator: str

    @property
    def stem(self) -> str:
        """The file name as words, without its author."""
        return without_author(self.path.stem, self.creator)


def drawings(cache: Path, english: frozenset[str]) -> list[Drawing]:
    """All clip-art with words, fit for a general audience; `english` holds captions known to be English."""
    leaves = list(_leaves(unpacked("openclipart", cache) / "usr" / "share" / "openclipart" / "svg"))
    titles = Counter(plain(leaf.title) for leaf in leaves)
    found = (_drawing(leaf, titles[plain(leaf.title)], english) for leaf in leaves)
    return [drawing for drawing in found if drawing is not None]


def _leaves(root: Path) -> Iterator[Leaf]:
    """The files of all folders that are not left out, sorted by path."""
    for path in sorted(root.rglob("*.svg")):
        folder = path.parent.relative_to(root).as_posix()
        left_out = any(folder == f or folder.startswith(f + "/") for f in LEFT_OUT_FOLDERS)
        if not left_out and not path.is_symlink() and not re.search(r"pt\d+step$", path.stem):  # machine-made stars
            svg = path.read_bytes().decode("utf-8", "replace")
            yield Leaf(path, folder, svg, *metadata(svg))


def _drawing(leaf: Leaf, title_count: int, english: frozenset[str]) -> Drawing | None:
    """One file, or None when it has no usable words."""
    text = _text(leaf, title_count, english)
    said = plain(leaf.description)
    words = set(re.findall("[a-z]+", f"{text} {said} {' '.join(leaf.keywords)} {plain(leaf.path.stem)}"))
    if not text or words & LEFT_OUT_WORDS or is_brand(text):
        return None
    topic = plain(leaf.folder.rsplit("/", 1)[-1])
    tags = [k for k in [*leaf.keywords, topic] if k not in _MARKERS and not _is_author(k, leaf.creator)]
    texts = unique([said if 8 < len(said) < 120 else "", *tags], leave_out=text, limit=10)
    return Drawing(
        key=f"{FAMILY}/{leaf.folder}/{leaf.path.stem}",
        content=leaf.svg,
        text=text,
        texts=tuple(texts),
        family=FAMILY,
        kind="clipart",
        source=PACKAGES["openclipart"].source,
        licence=LICENCE,
        group=plain(leaf.folder),
    )


def _text(leaf: Leaf, title_count: int, english: frozenset[str]) -> str:
    """The caption of one file; empty when there is none."""
    if "architetto" in leaf.path.stem or "Rollandin" in leaf.creator:  # his titles are Italian, his keywords English
        return next((k for k in leaf.keywords if k in english), "")
    shared = set(plain(leaf.title).split()) & set(leaf.stem.split())
    title = leaf.title if title_count < 3 or (shared and title_count < COMMON_TITLE) else ""
    text = best_caption(title, [leaf.stem, *leaf.keywords], leaf.creator)
    if "/flags/" in leaf.folder + "/" and text and "flag" not in text:
        return f"flag of {text}"
    return text


def best_caption(title: str, others: list[str], creator: str) -> str:
    """The title as words, else the first of the others that says something; empty when none does."""
    for candidate in (title, *others):
        text = re.sub(r"(?<=[a-z]{3})\d+$", "", _BY.sub("", caption(without_author(candidate, creator))))
        letters = re.sub(r"[^a-z]", "", text)
        if (
            len(letters) >= 3
            and len(text) <= 80
            and text.isascii()
            and text not in _MARKERS
            and not _POOR_TITLE.search(text)
            and not _COLLECTION.search(text)
        ):
            return text
    return ""


def without_author(name: str, creator: str) -> str:
    """A name without its author at the end, whole or cut short: `"half_egg_jean-victor_bal_01"`."""
    words = caption(name).split()
    authors = plain(creator).split()
    while len(words) > 1 and (
        words[-1].isdigit()
        or any(a.startswith(words[-1]) and (len(words[-1]) > 2 or a is not words[-1]) for a in authors)
    ):
        words.pop()
    return " ".join(words)


def _is_author(keyword: str, creator: str) -> bool:
    """Whether a keyword names a person or an address instead of the picture."""
    words = keyword.split()
    return keyword.endswith((" com", " org", " net")) or (bool(words) and set(words) <= set(plain(creator).split()))


def metadata(svg: str) -> tuple[str, str, list[str], str]:
    """(title, description, keywords, creator) of the Dublin Core block; empty where there is none."""
    block = re.search(r"<(?:cc:)?Work\b.*?</(?:cc:)?Work>", svg, re.S)
    if block is None:
        return "", "", [], ""
    text = block.group(0)
    keywords = [plain(unescape(k)) for k in re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", text, re.S)]
    title = re.search(r"<dc:title[^>]*>(.*?)</dc:title>", text, re.S)
    description = re.search(r"<dc:description[^>]*>(.*?)</dc:description>", text, re.S)
    creator = re.search(r"<dc:creator>.*?<dc:title[^>]*>(.*?)</dc:title>", text, re.S)
    return (
        unescape(title.group(1)) if title else "",
        unescape(description.group(1)) if description else "",
        [k for k in keywords if len(k) > 2 and k.isascii() and len(k) < 40],
        unescape(creator.group(1)) if creator else "",
    )


def unescape(text: str) -> str:
    """Text without XML escapes and tags, on one line."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text))).strip()
