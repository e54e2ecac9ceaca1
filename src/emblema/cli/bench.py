"""The verb that compares: bench."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from emblema.cli.common import parser_of, table, without, words
from emblema.core.errors import BadData, UnknownName

BENCHES = ("paradigms",)


def bench(arguments: list[str], as_json: bool) -> Any:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: emblema bench paradigms [--data A,B] [--labels 1,4,16,all] [--seeds 1,2,3] [--out FILE.jsonl]")
        return None
    if arguments[0] not in BENCHES:
        raise UnknownName("bench", arguments[0], list(BENCHES))
    parser = parser_of("bench paradigms", "The survey's five paradigms: accuracy against labels a class.")
    parser.add_argument("--data", default="emblem-food,digits", help="names or paths, comma-separated")
    parser.add_argument("--labels", default="1,4,16,all", help="pictures a class, comma-separated")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--paradigms", default="", help="some of them; default: all five")
    parser.add_argument("--pretrain-steps", type=int, default=600)
    parser.add_argument("--finetune-steps", type=int, default=100)
    parser.add_argument("--out", help="write the result lines here, and table and figure beside them")
    options = parser.parse_args(arguments[1:])
    from emblema.bench import paradigms
    from emblema.bench.paradigms.network import Budget
    from emblema.report import paradigms as report

    known = [n.replace("_", "-") for n in paradigms.NAMES]
    chosen = words(options.paradigms) or known
    if wrong := [n for n in chosen if n.replace("_", "-") not in known]:
        raise UnknownName("paradigm", wrong[0], known)
    began = time.perf_counter()
    lines = paradigms.run(
        words(options.data),
        [None if n == "all" else _number(n) for n in words(options.labels)],
        [_number(n) for n in words(options.seeds)],
        [n.replace("-", "_") for n in chosen],
        Budget(pretrain=options.pretrain_steps, finetune=options.finetune_steps),
        command=" ".join(["emblema bench", *without(arguments, ("--out",))]),
    )
    if options.out:
        out = Path(options.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        for name, text in report.pages(lines).items():
            (out.parent / name).write_text(text, encoding="utf-8")
        print(f"{out}, with table and figure beside it", file=sys.stderr)
    if not as_json:
        for title, header, rows in report.as_tables(lines):
            table(header, rows, title)
        print(f"{time.perf_counter() - began:.0f} s")
    return lines


def _number(text: str) -> int:
    if not text.isdigit():
        raise BadData(f"{text!r} is no whole number; labels and seeds are numbers, or all for every labelled picture")
    return int(text)
