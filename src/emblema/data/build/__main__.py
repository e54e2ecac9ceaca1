"""`python -m emblema.data.build --out DIR [--only STEP]`: make the bundled sets again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import STEPS, build_all, default_cache


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m emblema.data.build", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the parquet files and cards.json")
    parser.add_argument("--cache", type=Path, default=None, help=f"folder for downloads (default {default_cache()})")
    parser.add_argument("--only", choices=STEPS, default=None, help="build one step only")
    parser.add_argument("--larger", action="store_true", help="take more icon sets than are shipped")
    parser.add_argument("--attribution", type=Path, default=None, help="file for the page of credits")
    options = parser.parse_args(arguments)
    build_all(options.out, options.cache, options.only, options.larger, options.attribution)


if __name__ == "__main__":
    main()
