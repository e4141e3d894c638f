"""What the bench says and does of memory."""

import subprocess
import sys

import pytest

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
    found = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_freed_memory_is_kept():
    assert faults("kept") < 1000 < 10_000 < faults("as it is")
