import os
import subprocess
import sys

SCRIPT = """
import resource, sys
import torch
from emblema.engine.allocator import keep_freed
kept = keep_freed() if sys.argv[1] == "keep" else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 * 2**20)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


def run(how, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=clean | environment, capture_output=True, text=True, check=True
    )
    kept, faults = found.stdout.split()
    return kept == "True", int(faults)


def test_memory_that_was_freed_is_used_again_without_page_faults():
    kept, after = run("keep")
    plain, before = run("leave")
    assert kept == (sys.platform == "linux") and not plain
    if not kept:
        return  # mallopt is glibc's
    assert before > 300  # ten times 64 MB in pages of 2 MB at most
    assert after < before / 10


def test_settings_of_the_user_are_left_alone():
    assert not run("keep", MALLOC_ARENA_MAX="2")[0]
