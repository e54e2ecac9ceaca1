"""All side-by-side comparisons, one after the other (`make bench`); lines go to benchmarks/results/speed.jsonl.

Keep the machine otherwise idle; every comparison interleaves its variants and reports the range of its rounds.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE / "results" / "speed.jsonl"
COMMANDS = (
    ("train_step.py", "--rounds", "9", "--compile"),
    ("tiled_loss.py", "--batch", "4096", "16384", "--rounds", "3"),
    ("zero_shot.py", "--rounds", "3"),
    ("retrieval.py",),
    ("probe.py",),
    ("probe.py", "--images", "6400", "--rounds", "3"),
    ("decode.py", "--rounds", "20"),
    ("latency.py",),
    ("allocator.py",),
    ("coop.py", "--rounds", "5"),
)

for script, *options in COMMANDS:
    print(f"\n== {script} {' '.join(options)}", flush=True)
    environment = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
    }  # for both sides
    subprocess.run([sys.executable, HERE / script, *options, "--out", OUT], check=True, env=environment)
