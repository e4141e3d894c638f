"""What the bench says and does of memory."""

import os
import subprocess
import sys

import pytest

# By default glibc raises its thresholds by what it meets, and may happen to keep everything: given ones stay.
GIVEN = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

# Blocks of some hundred kilobytes, as a model's are, time and again; prints how many pages had to be fetched anew.
PROGRAM = """
import resource, sys, torch
from flowkernels.bench.memory import keep_freed
if sys.argv[1] == "kept":
    assert keep_freed()
def use():
    blocks = [torch.ones(2**16 * (1 + i % 3)) for i in range(40)]
for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    command, environment = [sys.executable, "-c", PROGRAM, how], {**os.environ, **GIVEN}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_freed_memory_is_kept():
    assert faults("kept") < 1000 < 10_000 < faults("given back")
