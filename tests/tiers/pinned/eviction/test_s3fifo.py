from __future__ import annotations

from eviction_rig import anything, chunks

from kvtier.tiers.pinned.eviction.s3fifo import REPRIEVES_MAX, S3FifoPolicy


def test_s3fifo_takes_a_returning_ghost_into_its_main_queue() -> None:
    s3fifo = S3FifoPolicy(10)
    s3fifo.insert([b"ghost"])
    s3fifo.evict(1, anything)
    s3fifo.insert([b"ghost"])
    s3fifo.insert([b"new"])
    assert s3fifo.evict(1, anything) == [b"new"]


def test_s3fifo_counts_a_key_once_in_one_batch() -> None:
    s3fifo = S3FifoPolicy(10)
    for key in (b"a", b"b"):
        s3fifo.insert([key])
        s3fifo.evict(1, anything)
        s3fifo.insert([key])  # from its ghost: straight into the main queue
    s3fifo.touch([b"a", b"a", b"a"])
    s3fifo.touch([b"b"])
    s3fifo.touch([b"b"])
    assert s3fifo.evict(2, anything) == [b"a", b"b"]


def test_s3fifo_forgets_the_uses_of_a_chunk_that_enters_its_main_queue() -> None:
    s3fifo = S3FifoPolicy(10)
    s3fifo.insert([b"main"])
    s3fifo.evict(1, anything)
    s3fifo.insert([b"used"])
    s3fifo.touch([b"used"])
    s3fifo.touch([b"used"])
    assert s3fifo.evict(1, lambda key: key != b"used") == []
    s3fifo.insert([b"main"])  # from its ghost: behind the chunk that came out of the small queue
    assert s3fifo.evict(1, anything) == [b"used"]


def test_s3fifo_bounds_the_sweep_when_every_chunk_was_used() -> None:
    count = 4 * REPRIEVES_MAX
    s3fifo = S3FifoPolicy(count)
    keys = chunks("a", count)
    s3fifo.insert(keys)
    s3fifo.touch(keys)
    oldest_first = keys[::-1]
    assert s3fifo.evict(1, anything) == [oldest_first[REPRIEVES_MAX]]
