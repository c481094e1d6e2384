"""Freed memory is kept and given back where the C library is glibc, and nowhere is that an error."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import numpy as np
from retrodistill.core.runtime import keep_freed_memory

taken = sys.argv[1] == "keep" and keep_freed_memory()
np.ones(8_000_000)  # 64 MB, the first time mapped in either case
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(8_000_000)
print(int(taken), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[bool, int]:
    """Whether glibc took it, and the pages that the kernel cleared for five arrays of 64 MB."""
    done = subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True)
    taken, pages = done.stdout.split()
    return bool(int(taken)), int(pages)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_block_that_was_freed_is_handed_out_again_without_the_kernel() -> None:
    taken, kept = faults("keep")
    if not taken:
        pytest.skip("another C library than glibc")
    assert kept < faults("leave")[1] / 10


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_nothing_is_done(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from retrodistill.core.runtime import keep_freed_memory, release_freed_memory

    monkeypatch.setattr("sys.platform", platform)
    assert not keep_freed_memory.__wrapped__()
    assert not release_freed_memory()


_RELEASED = """
import psutil
import numpy as np
from retrodistill.core.runtime import keep_freed_memory, release_freed_memory

keep_freed_memory()
blocks = [np.ones(500_000) for _ in range(40)]  # 160 MB
blocks = blocks[::10]  # the others are gaps between these
before = psutil.Process().memory_info().rss
print(int(release_freed_memory()), before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_gaps_between_blocks_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _RELEASED], capture_output=True, text=True, check=True)
    given, pages = map(int, done.stdout.split())
    if not given:
        pytest.skip("another C library than glibc")
    assert pages > 100e6
