"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from vlkd_cli.engine.launching.host_memory import keep_freed_memory
reused = keep_freed_memory()
def step():
    kept_until_the_end = [(torch.ones(1 << 20), bytearray(300)) for _ in range(16)]
for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(reused, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only glibc's malloc has the setting"
)
def test_later_steps_ask_the_system_for_no_pages() -> None:
    reused, faults = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    ).stdout.split()
    if reused == "False":
        pytest.skip("this C library has no mallopt")
    # Sixteen tensors of 4 MiB are 16384 pages.
    assert int(faults) < 1000
