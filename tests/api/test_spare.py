"""Memory that is free goes back to the system."""

import psutil

from service.api.spare import give_back

COUNT, BYTES = 1000, 100_000


def test_what_is_free_between_what_is_used_is_given_back() -> None:
    own = psutil.Process()
    blocks = [bytearray(b"1" * BYTES) for _ in range(COUNT)]
    kept = blocks[::100]  # so that the allocator cannot give back the others by itself
    del blocks
    before = own.memory_info().rss
    give_back()
    assert before - own.memory_info().rss > COUNT * BYTES / 2
    assert all(block[0] == ord("1") for block in kept)
