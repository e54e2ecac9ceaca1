"""The verb `caption`: a sentence for each picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from emblema.cli.common import table
from emblema.cli.pictures import _load, all_broken, pictures_in, with_model
from emblema.core.errors import BadData


def caption(arguments: list[str], as_json: bool) -> Any:
    parser = with_model("caption", "A sentence for each picture, by a model that was trained to write them (coca).")
    parser.add_argument("pictures", nargs="+", help="folders (searched with their subfolders) or files")
    parser.add_argument("--beams", type=int, default=4, help="captions followed at once; 1 takes the likeliest word")
    parser.add_argument("--page", help="write an HTML page with pictures and captions here")
    options = parser.parse_args(arguments)
    if options.beams < 1:
        raise BadData(f"--beams {options.beams}: at least one caption must be followed")
    paths = pictures_in(options.pictures)
    said, errors = _load(options).try_captions(paths, beams=options.beams)
    broken = dict(errors)
    found = [{"path": str(p), "caption": said[i], "error": broken.get(i)} for i, p in enumerate(paths)]
    if not as_json:
        rows = [(f["path"], f["caption"] if f["error"] is None else f"cannot be read: {f['error']}") for f in found]
        table(("picture", "caption"), rows)
    if options.page:
        from emblema.report import page

        shown = [{"image": f["path"], "name": f["caption"]} for f in found[:500] if f["error"] is None]
        print(f"page: {page.write(Path(options.page), title='Captions', pictures=shown)}", file=sys.stderr)
    all_broken(paths, errors)
    return found
