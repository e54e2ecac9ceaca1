"""The builder of the bundled data sets: from pinned packages to `bundled/`, the same bytes each time.

It needs the extra `build` (resvg-py), the clients npm, apt-get and dpkg-deb, and at first the network.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .packages import PACKAGES, PackageError, default_cache

__all__ = ["PACKAGES", "STEPS", "PackageError", "build_all", "default_cache"]

STEPS = ("emblems", "photos", "backgrounds", "actions", "downstream", "tree", "cards")


def build_all(
    out_dir: Path,
    cache_dir: Path | None = None,
    only: str | None = None,
    larger: bool = False,
    attribution: Path | None = None,
) -> None:
    """Write all bundled sets, or those of one step, into `out_dir`.

    `only` is one of `STEPS`; `downstream`, `tree` and `cards` read what the earlier steps wrote. `larger` takes more
    icon sets into `emblems` than are shipped. `attribution` is where the page of credits goes, by default
    `ATTRIBUTION.md` in `out_dir`. Raises `ValueError` for an unknown step, `PackageError` when a package
    cannot be had.
    """
    if only is not None and only not in STEPS:
        raise ValueError(f"no build step {only!r}; the steps are {', '.join(STEPS)}")
    cache = cache_dir or default_cache()
    out_dir.mkdir(parents=True, exist_ok=True)
    for step in STEPS if only is None else (only,):
        if step == "emblems":
            from .emblems import build

            build(out_dir, cache, larger=larger)
        elif step == "cards":
            from . import attribution as credits
            from . import cards

            cards.build(out_dir)
            credits.build(out_dir, cache, attribution or out_dir / "ATTRIBUTION.md")
        else:
            import_module(f".{step}", __name__).build(out_dir, cache)
