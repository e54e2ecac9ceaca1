"""Reader for one Iconify collection: names, SVG text, code points, categories and rights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .packages import unpacked


class Collection:
    """One icon set of the Iconify package, by its prefix, such as `noto`."""

    def __init__(self, prefix: str, cache: Path) -> None:
        path = unpacked("iconify", cache) / "package" / "json" / f"{prefix}.json"
        self.prefix = prefix
        self._data: dict[str, Any] = json.loads(path.read_text("utf-8"))
        self.licence: str = self._data["info"]["license"]["spdx"]
        self.title: str = self._data["info"]["name"]
        self.author: str = self._data["info"].get("author", {}).get("name", "")
        self.url: str = self._data["info"].get("author", {}).get("url", "")
        self.categories: dict[str, str] = {}
        for category, names in self._data.get("categories", {}).items():
            for name in names:
                self.categories.setdefault(name, category)

    def names(self) -> Iterator[str]:
        """The names of the icons that are not hidden, in the order of the file; aliases are left out."""
        for name, icon in self._data["icons"].items():
            if not icon.get("hidden"):
                yield name

    def chars(self) -> dict[str, str]:
        """Code points (`1f431`, lower case) to icon names; empty for sets that do not record them."""
        return self._data.get("chars", {})

    def aliases(self) -> dict[str, str]:
        """Other names to icon names, only those that do not flip or turn the picture."""
        found = {}
        for name, alias in self._data.get("aliases", {}).items():
            if set(alias) <= {"parent", "hidden"}:
                found[name] = alias["parent"]
        return found

    def svg(self, name: str) -> str:
        """A whole SVG document; `currentColor` stays and is drawn black."""
        icon = self._data["icons"][name]
        left, top = icon.get("left", self._data.get("left", 0)), icon.get("top", self._data.get("top", 0))
        width = icon.get("width", self._data.get("width", 16))
        height = icon.get("height", self._data.get("height", 16))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
