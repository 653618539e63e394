"""Freed memory stays with the process: no page is faulted in twice. The largest size is the program's own."""

import gc
import subprocess
import sys

import pytest

from cinemo.garbage import without_collections

FAULTS = """
import resource, sys
import numpy as np
from cinemo.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
np.ones(20 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(20 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_blocks_that_were_freed_are_used_again_without_page_faults() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True)
        return int(done.stdout)

    pages = 10 * (20 << 20) // 4096
    assert faults("keep") < pages // 20
    assert faults("default") > 5 * faults("keep")


HOLES = """
import sys
import numpy as np
import psutil
from cinemo.memory import give_back_freed_memory

if sys.argv[1] == "give back":
    assert give_back_freed_memory()
np.ones(4 << 20, np.uint8)  # freed: from here on, glibc takes blocks of this size from its heap
before = psutil.Process().memory_info().rss
blocks = [np.ones(4 << 20, np.uint8) for _ in range(40)]
del blocks[:-1]  # the last one holds the heap's end
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_blocks_that_were_freed_are_given_back_although_others_lie_behind_them() -> None:
    def kept(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", HOLES, how], check=True, capture_output=True, text=True)
        return int(done.stdout)

    assert kept("give back") < 16 << 20
    assert kept("default") > 100 << 20


def test_collections_are_on_again_after_a_block_that_fails_and_skip_what_a_block_made() -> None:
    before = gc.get_freeze_count()
    with without_collections():
        assert not gc.isenabled()
        made = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)
    with pytest.raises(KeyError), without_collections():
        raise KeyError
    assert gc.isenabled()
    gc.unfreeze()


def test_the_largest_size_is_the_programs_own_and_not_that_of_the_one_that_started_it() -> None:
    program = "from cinemo.memory import peak_rss; first = peak_rss(); b'1' * (300 << 20); print(first, peak_rss())"
    held = b"1" * (600 << 20)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    first, last = map(int, done.stdout.split())
    assert first < 300 << 20 < last < len(held)
