"""Memory of the host."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from mtl_diffusion.tools.memory import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()

def use():
    torch.ones(12_000_000)  # 48 MB: more than a block that glibc keeps by itself

for _ in range(20):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_pages_of_freed_tensors_are_used_again():
    def faults(what):
        given = [sys.executable, "-c", FAULTS, what]
        return int(subprocess.run(given, check=True, capture_output=True, text=True).stdout)

    once = 48_000_000 // (1 << 12)  # pages; fewer where the system gives huge ones
    kept, freed = faults("keep"), faults("free")
    assert kept < once / 10
    assert kept < freed
