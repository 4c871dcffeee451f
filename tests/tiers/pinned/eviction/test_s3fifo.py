from __future__ import annotations

from eviction_rig import anything, chunks, insert, touch

from kvtier.tiers.pinned.eviction.s3fifo import REPRIEVES_MAX, S3FifoPolicy


def test_s3fifo_takes_a_returning_ghost_into_its_main_queue() -> None:
    s3fifo = S3FifoPolicy(10)
    insert(s3fifo, [b"ghost"])
    s3fifo.evict(1, anything)
    insert(s3fifo, [b"ghost"])
    insert(s3fifo, [b"new"])
    assert s3fifo.evict(1, anything) == [b"new"]


def test_s3fifo_counts_a_key_once_in_one_batch() -> None:
    s3fifo = S3FifoPolicy(10)
    for key in (b"a", b"b"):
        insert(s3fifo, [key])
        s3fifo.evict(1, anything)
        insert(s3fifo, [key])  # from its ghost: straight into the main queue
    touch(s3fifo, [b"a", b"a", b"a"])
    touch(s3fifo, [b"b"])
    touch(s3fifo, [b"b"])
    assert s3fifo.evict(2, anything) == [b"a", b"b"]


def test_s3fifo_forgets_the_uses_of_a_chunk_that_enters_its_main_queue() -> None:
    s3fifo = S3FifoPolicy(10)
    insert(s3fifo, [b"main"])
    s3fifo.evict(1, anything)
    insert(s3fifo, [b"used"])
    touch(s3fifo, [b"used"])
    touch(s3fifo, [b"used"])
    assert s3fifo.evict(1, lambda key: key != b"used") == []
    insert(s3fifo, [b"main"])  # from its ghost: behind the chunk that came out of the small queue
    assert s3fifo.evict(1, anything) == [b"used"]


def test_s3fifo_bounds_the_sweep_when_every_chunk_was_used() -> None:
    count = 4 * REPRIEVES_MAX
    s3fifo = S3FifoPolicy(count)
    keys = chunks("a", count)
    insert(s3fifo, keys)
    touch(s3fifo, keys)
    oldest_first = keys[::-1]
    assert s3fifo.evict(1, anything) == [oldest_first[REPRIEVES_MAX]]
