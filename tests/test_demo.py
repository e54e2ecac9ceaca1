"""What a newcomer runs first, with no minute to train in: every command of it works and leaves what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


@pytest.mark.slow
def test_demo(tmp_path):
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, DEMO, run, "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [line["model"].endswith("default") for line in lines] == [False] * 4 + [True] * 4
    small, default = (line["metrics"]["top1"]["value"] for line in (lines[0], lines[4]))
    assert default > 0.4 > small  # twenty steps teach nothing
    pages = {page.name for page in run.glob("*.html")}
    assert len(pages) == 9 and "clip-zero-shot-emblem-activities.html" in pages
    assert str(run / "index.html") in done.stdout and str(run / "results.jsonl") in done.stdout
