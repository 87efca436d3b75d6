"""Memory that is free goes back to the system, and threads keep none of their own."""

import subprocess
import sys

import psutil
import pytest

from service.api.spare import Spare

COUNT, BYTES = 1000, 100_000


def test_what_is_free_between_what_is_used_is_given_back() -> None:
    own, spare = psutil.Process(), Spare()
    spare.give_back()  # what tests before have left
    assert not spare.is_much()
    blocks = [bytearray(b"1" * BYTES) for _ in range(COUNT)]
    kept = blocks[::100]  # so that the allocator cannot give back the others by itself
    del blocks
    before = own.memory_info().rss
    assert spare.is_much()
    spare.give_back()
    assert before - own.memory_info().rss > COUNT * BYTES / 2
    assert not spare.is_much()
    assert all(block[0] == ord("1") for block in kept)


def test_what_is_used_for_good_is_looked_at_once() -> None:
    spare = Spare()
    spare.give_back()
    used = [bytearray(b"1" * BYTES) for _ in range(COUNT)]
    assert spare.is_much()
    spare.give_back()
    assert not spare.is_much()
    del used
    spare.give_back()
    again = [bytearray(b"1" * BYTES) for _ in range(COUNT)]
    assert spare.is_much()
    assert len(again) == COUNT


@pytest.mark.parametrize(("share", "more"), [("", True), ("share()", False)])
def test_a_thread_takes_from_the_memory_of_all(share: str, more: bool) -> None:
    script = f"""
from threading import Thread
from service.api.spare import share
def reserved():
    unused = [line.split()[0].split("-") for line in open("/proc/self/maps") if " ---p " in line]
    sizes = [int(end, 16) - int(start, 16) for start, end in unused]
    return sum(size > 48 << 20 for size in sizes)  # of an arena's 64 MiB, what it does not use yet
{share}
before, held = reserved(), []
thread = Thread(target=lambda: held.append([bytes(1000) for _ in range(1000)]))
thread.start()
thread.join()
print(reserved() > before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == str(more)
