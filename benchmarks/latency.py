"""Time to the first answer of the command line: `--help`, `list`, `show clip`, each in a fresh process.

python benchmarks/latency.py --out results/latency.jsonl
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from side_by_side import finish

COMMANDS = (("--help",), ("list",), ("list", "--json"), ("show", "clip"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {" ".join(c): [] for c in COMMANDS}
    for _ in range(options.rounds + 1):
        for command in COMMANDS:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "emblema", *command], check=True, stdout=subprocess.DEVNULL)
            seconds[" ".join(command)].append(time.perf_counter() - began)
    shown = {
        name: {"median": round(statistics.median(s[1:]), 3), "low": round(min(s[1:]), 3), "high": round(max(s[1:]), 3)}
        for name, s in seconds.items()  # the first round filled the file cache
    }
    notes = [f"`emblema {n}` answers in {t['median']} s [{t['low']} .. {t['high']}]" for n, t in shown.items()]
    finish("latency", [], options.out, notes, seconds=shown, rounds=options.rounds)


if __name__ == "__main__":
    main()
