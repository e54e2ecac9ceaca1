"""Emoji of twelve art families: which code point each picture shows, and what it is called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .iconify import Collection
from .packages import PACKAGES, unpacked
from .raster import Drawing
from .words import caption, plain, squash, unique

FAMILIES = (
    "noto",
    "noto-v1",
    "twemoji",
    "openmoji",
    "fluent-emoji",
    "fluent-emoji-flat",
    "fluent-emoji-high-contrast",
    "emojione",
    "emojione-v1",
    "emojione-monotone",
    "fxemoji",
    "streamline-emojis",
)
FLUENT_3D = "fluent-3d"
LANGUAGES = (
    "en",
    "ko",
    "ja",
    "zh",
    "de",
    "fr",
    "es",
    "pt",
    "it",
    "ru",
    "hi",
    "nl",
    "pl",
    "sv",
    "vi",
    "th",
    "uk",
)
ONLY_KNOWN = ("openmoji", "fxemoji")  # names outside Unicode there are brands, or words run together

# Names that mean another picture in their own set than they do in Unicode.
_EVERYWHERE = {
    "flag-for-swaziland": "flag: Eswatini",
    "flag-for-cocos-islands": "flag: Cocos (Keeling) Islands",
}
RENAMED: dict[str, dict[str, str]] = {
    "emojione": _EVERYWHERE,
    "emojione-v1": _EVERYWHERE,
    "emojione-monotone": _EVERYWHERE,
    "fxemoji": {
        "down": "backhand index pointing down",
        "up": "backhand index pointing up",
        "left": "backhand index pointing left",
        "right": "backhand index pointing right",
        "beachumbrella": "beach with umbrella",
        "cat": "cat face",
        "catside": "cat",
        "bunny": "rabbit face",
        "bunnyside": "rabbit",
        "dog": "dog face",
        "dogside": "dog",
        "mouse": "mouse face",
        "mouseside": "mouse",
        "pig": "pig face",
        "pigside": "pig",
        "tiger": "tiger face",
        "tigerside": "tiger",
        "horse": "horse face",
        "horseside": "horse",
        "franceflag": "flag: France",
        "chineseflag": "flag: China",
        "greatbritainflag": "flag: United Kingdom",
        "italianflag": "flag: Italy",
        "japanflag": "flag: Japan",
        "koreaflag": "flag: South Korea",
        "russianflag": "flag: Russia",
        "spanishflag": "flag: Spain",
    },
}
LEFT_OUT = ("pistol",)  # a firearm, where Unicode now has a water pistol
_TONE = re.compile(r"skin-tone|-(?:light|medium-light|medium|medium-dark|dark|default)$")
_TONE_HEX = re.compile(r"1f3f[b-f]")


@dataclass(frozen=True)
class Concept:
    """One emoji of Unicode."""

    id: str  # code point without variation selectors, lower case: "1f431"
    label: str  # plain lower-case words
    tags: tuple[str, ...]
    group: str  # such as "animals-nature"
    subgroup: str  # such as "animal-mammal"


def concept_id(hexcode: str) -> str:
    """The code point sequence in lower case, without variation selectors and leading zeros."""
    parts = [p.lstrip("0") or "0" for p in hexcode.lower().split("-") if p != "fe0f"]
    return "-".join(parts)


def concepts(cache: Path) -> dict[str, Concept]:
    """All emoji of emojibase by id, without skin tones."""
    root = unpacked("emojibase", cache) / "package"
    meta = json.loads((root / "meta" / "groups.json").read_text("utf-8"))
    found = {}
    for entry in json.loads((root / "en" / "data.json").read_text("utf-8")):
        if "group" not in entry:
            continue
        item = Concept(
            concept_id(entry["hexcode"]),
            label_words(entry["label"]),
            tuple(plain(t) for t in entry.get("tags", ())),
            meta["groups"][str(entry["group"])],
            meta["subgroups"][str(entry["subgroup"])],
        )
        found[item.id] = item
    return found


def label_words(label: str) -> str:
    """An emojibase label as a caption: `"flag: Austria"` gives `"flag of austria"`."""
    return re.sub(r"^flag ", "flag of ", plain(label)) if label.startswith("flag: ") else plain(label)


def translations(cache: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """(concept, language, label, tags) for each emoji and language, sorted."""
    root = unpacked("emojibase", cache) / "package"
    rows = []
    for language in LANGUAGES:
        for entry in json.loads((root / language / "data.json").read_text("utf-8")):
            if "group" in entry:
                rows.append((concept_id(entry["hexcode"]), language, entry["label"], entry.get("tags", [])))
    return iter(sorted(rows, key=lambda r: r[:2]))


class Names:
    """From a name in any of the sets to the emoji that it names."""

    def __init__(self, cache: Path) -> None:
        self.concepts = concepts(cache)
        self._index: dict[str, str] = {}
        root = unpacked("emojibase", cache) / "package"
        for entry in json.loads((root / "en" / "data.json").read_text("utf-8")):
            self._learn(entry["label"], entry["hexcode"])
        for hexcode, name in json.loads((root / "meta" / "unicode-names.json").read_text("utf-8")).items():
            self._learn(name, hexcode)
        for prefix in ("noto", "twemoji", "fluent-emoji-flat", "openmoji"):
            self._learn_collection(Collection(prefix, cache))
        for book in ("cldr", "emojibase", "joypixels", "iamcal", "github"):
            text = (root / "en" / "shortcodes" / f"{book}.json").read_text("utf-8")
            for hexcode, names in json.loads(text).items():
                for name in [names] if isinstance(names, str) else names:
                    self._learn(name, hexcode)

    def _learn_collection(self, collection: Collection) -> None:
        """Take over the names and aliases of a set that records code points."""
        of = {name: hexcode for hexcode, name in collection.chars().items()}
        for name, hexcode in of.items():
            self._learn(name, hexcode)
        for alias, parent in collection.aliases().items():
            if parent in of:
                self._learn(alias, of[parent])

    def _learn(self, name: str, hexcode: str) -> None:
        """Remember a name; the first book that knows it wins."""
        known = concept_id(hexcode)
        if known in self.concepts:
            self._index.setdefault(squash(name), known)

    def find(self, name: str) -> Concept | None:
        """The emoji of a name: as it stands, then without serial number, `flag for`, or the word face."""
        words = caption(name)
        for guess in (
            name,
            words,
            re.sub(r"^(?:flag for )+(?:flag )?", "flag ", words),
            re.sub(r" face$", "", words),
            re.sub(r" (?:sign|symbol)$", "", words),
        ):
            known = self._index.get(squash(guess))
            if known:
                return self.concepts[known]
        return None


def drawings(cache: Path, names: Names) -> list[Drawing]:
    """All emoji pictures of all families, without skin tones."""
    found = []
    for prefix in FAMILIES:
        found.extend(_of_collection(Collection(prefix, cache), names))
    found.extend(_of_fluent_3d(cache, names))
    return found


def _of_collection(collection: Collection, names: Names) -> Iterator[Drawing]:
    """The emoji of one Iconify set."""
    of = {name: concept_id(hexcode) for hexcode, name in sorted(collection.chars().items())}
    all_names = set(collection.names())
    for name in collection.names():
        if name in LEFT_OUT or _is_toned(name, of.get(name, ""), all_names):
            continue
        concept = names.concepts.get(of.get(name, "")) or names.find(RENAMED.get(collection.prefix, {}).get(name, name))
        if concept is None and collection.prefix in ONLY_KNOWN:
            continue
        yield _drawing(
            collection.prefix,
            name,
            collection.svg(name),
            concept,
            PACKAGES["iconify"].source,
            collection.licence,
        )


def _is_toned(name: str, hexcode: str, all_names: set[str]) -> bool:
    """Whether the picture is a skin-tone variant of another picture of the same set."""
    if "skin-tone" in name or _TONE_HEX.search(hexcode):
        return True
    return bool(_TONE.search(name)) and _TONE.sub("", name) in all_names


def _of_fluent_3d(cache: Path, names: Names) -> Iterator[Drawing]:
    """The rendered three-dimensional emoji; the file name is the code point."""
    seen = set()
    for path in sorted((unpacked(FLUENT_3D, cache) / "package" / "assets").glob("*.webp")):
        concept = names.concepts.get(concept_id(path.stem))
        if concept is not None and concept.id not in seen:
            seen.add(concept.id)
            yield _drawing(FLUENT_3D, concept.id, path.read_bytes(), concept, PACKAGES[FLUENT_3D].source, "MIT")


def _drawing(
    family: str, name: str, content: str | bytes, concept: Concept | None, source: str, licence: str
) -> Drawing:
    """The drawing of one emoji: its label first, then its own name and its tags."""
    own = caption(name) if re.search("[a-z]{2}", name) and family != "fxemoji" and family != FLUENT_3D else ""
    text = concept.label if concept else own or name
    texts = unique([own, *(concept.tags if concept else ())], leave_out=text, limit=10)
    return Drawing(
        key=f"{family}/{name}",
        content=content,
        text=text,
        texts=tuple(texts),
        family=family,
        kind="emoji",
        source=source,
        licence=licence,
        concept=concept.id if concept else None,
        group=concept.group if concept else None,
    )
