"""The builder of the bundled data sets: from pinned packages to `bundled/`, the same bytes each time.

It needs the extra `build` (resvg-py), the clients npm, apt-get and dpkg-deb, and the network on its first run only.
"""

from __future__ import annotations

from pathlib import Path

from .packages import PACKAGES, PackageError, default_cache

__all__ = ["PACKAGES", "STEPS", "PackageError", "build_all", "default_cache"]

STEPS = ("emblems", "photos", "backgrounds", "actions", "downstream", "cards")


def build_all(
    out_dir: Path, cache_dir: Path | None = None, only: str | None = None, larger: bool = False
) -> None:
    """Write all bundled sets, or those of one step, into `out_dir`, and `ATTRIBUTION.md` beside them.

    `only` is one of `STEPS`; `downstream` and `cards` read what the earlier steps wrote. `larger` takes more icon
    sets into `emblems` than are shipped. Raises `ValueError` for an unknown step, `PackageError` when a package
    cannot be had.
    """
    if only is not None and only not in STEPS:
        raise ValueError(f"no build step {only!r}; the steps are {', '.join(STEPS)}")
    cache = cache_dir or default_cache()
    out_dir.mkdir(parents=True, exist_ok=True)
    for step in STEPS if only is None else (only,):
        _run(step, out_dir, cache, larger)


def _run(step: str, out: Path, cache: Path, larger: bool) -> None:
    """One step; modules are imported here so that `--help` needs none of them."""
    if step == "emblems":
        from . import emblems

        emblems.build(out, cache, larger=larger)
    elif step == "cards":
        from . import attribution, cards

        cards.build(out)
        attribution.build(out, cache, out / "ATTRIBUTION.md")
    else:
        from importlib import import_module

        import_module(f".{step}", __name__).build(out, cache)
