import os
import platform
import subprocess
import sys

import pytest

from tiramisu.allocator import CHOICES_OF_THE_USER

GLIBC = platform.libc_ver()[0] == "glibc"
FREES = """
import resource, torch
from tiramisu.allocator import keep_large_tensors
print(keep_large_tensors())
for _ in range(8):
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**environment: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if name not in CHOICES_OF_THE_USER}
    output = subprocess.run(
        [sys.executable, "-c", FREES], env=clean | environment, capture_output=True, text=True, check=True
    ).stdout.split()
    return output[0] == "True", int(output[1])


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_large_tensors_reuse_memory_unless_the_environment_says_otherwise() -> None:
    changed, faults = page_faults()
    assert changed and faults < 10_000
    changed, many = page_faults(MALLOC_MMAP_THRESHOLD_="100000")
    assert not changed and many > 50_000
