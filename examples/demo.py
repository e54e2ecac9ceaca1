"""Train a small CLIP on pictures with words for about five minutes, then see what it and the default model recognise.

Each step is a command that you could type yourself; this file only chooses how many steps fit five minutes here.
"""

import json
import shutil
import sys
from pathlib import Path

from emblema.cli import main

RUN = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
MINUTES = float(sys.argv[2]) if len(sys.argv) > 2 else 5
CLIP = "pretrain clip --arch demo --data emblems --captions first"
QUESTIONS = (
    ("zero-shot", "emblem-objects", "drawings by art families that no training set has seen, among 715 names"),
    ("zero-shot", "emblem-activities", "sports, games and festivities by the same families, among a few dozen names"),
    ("retrieval", "emblems", "pictures find their captions, captions their pictures"),
    ("zero-shot", "emblem-photos", "real photographs, by models that saw drawings"),
)


def run(command: str) -> None:
    """`emblema COMMAND`, stopping where it fails."""
    print(f"\n$ emblema {command}", flush=True)
    if code := main(command.split()):
        raise SystemExit(code)


shutil.rmtree(RUN, ignore_errors=True)
print("How fast is this machine? A few steps will tell.")
run(f"{CLIP} --steps 16 --out {RUN}/speed")
log = [json.loads(line) for line in (RUN / "speed" / "log.jsonl").read_text().splitlines()]
steps = [line["seconds"] for line in log if line["event"] == "step"]
seconds = min(steps[:-2])  # the last two have the machine to themselves: no batch is prepared any more
run(f"{CLIP} --steps {max(20, round(60 * MINUTES / seconds))} --out {RUN}")
results = RUN / "results.jsonl"
for who, model in (("clip", RUN / "model"), ("default", "default")):
    for task, data, what in QUESTIONS:
        print(f"\n{what}")
        page = RUN / f"{who}-{task}-{data}.html"
        run(f"evaluate {task} --data {data} --model {model} --out {results} --page {page}")
run(f"report {results} --page {RUN}/index.html")
print(f"\nresult lines: {results}\ntables: {RUN}/index.html")
print(f"pictures with what the new model says: {RUN}/clip-zero-shot-emblem-activities.html, and so for each task")
