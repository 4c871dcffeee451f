import random
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.tiers.nvme.format.checksum import ChunkChecksum, block_checksum

MIB = 1024 * 1024
CHECKSUM = ChunkChecksum(b"n" * 32)


def test_the_crc_is_castagnolis() -> None:
    assert block_checksum(b"123456789") == 0xE3069283


def test_it_covers_namespace_key_length_and_payload() -> None:
    right = CHECKSUM.of(b"key", b"payload")
    assert right == CHECKSUM.of(b"key", memoryview(b"payload"))
    others = [
        ChunkChecksum(b"m" * 32).of(b"key", b"payload"),
        CHECKSUM.of(b"kez", b"payload"),
        CHECKSUM.of(b"key", b"payloae"),
        CHECKSUM.of(b"key", b"payload\0"),
        CHECKSUM.of(b"keyp", b"ayload"),
        CHECKSUM.of(b"ke", b"ypayload"),
    ]
    assert right not in others
    assert len(set(others)) == len(others)


def test_every_flipped_bit_shows() -> None:
    payload = memoryview(bytearray(range(256)))
    right = CHECKSUM.of(b"key", payload)
    for bit in range(0, 2048, 7):
        payload[bit // 8] ^= 1 << bit % 8
        assert CHECKSUM.of(b"key", payload) != right
        payload[bit // 8] ^= 1 << bit % 8


def test_threads_get_the_same_answer() -> None:
    payload, answers = bytes(256 * 1024), []
    threads = [
        threading.Thread(target=lambda: answers.append(CHECKSUM.of(b"key", payload))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {CHECKSUM.of(b"key", payload)}


@given(st.binary(max_size=5000), st.lists(st.integers(0, 5000), max_size=8))
def test_the_checksum_of_the_parts_is_that_of_the_whole(payload: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    parts = [payload[start:end] for start, end in pairwise(edges)]
    sums = [(CHECKSUM.of_part(part), len(part)) for part in parts]
    assert CHECKSUM.of_parts(b"key", sums) == CHECKSUM.of(b"key", payload)


@pytest.mark.parametrize("size_bytes", [2 * MIB, 8 * MIB + 1, 32 * MIB - 4095, 80 * MIB])
def test_it_is_so_for_the_largest_chunks_too(size_bytes: int) -> None:
    payload = memoryview(random.Random(size_bytes).randbytes(MIB) * 81)[:size_bytes]
    parts = [payload[start : start + MIB] for start in range(0, size_bytes, MIB)]
    sums = [(CHECKSUM.of_part(part), len(part)) for part in parts]
    assert CHECKSUM.of_parts(b"key", sums) == CHECKSUM.of(b"key", payload)


def test_parts_in_another_order_or_of_another_key_have_another_checksum() -> None:
    sums = [(CHECKSUM.of_part(part), len(part)) for part in (b"abc", b"defg", b"hi")]
    right = CHECKSUM.of_parts(b"key", sums)
    assert right == CHECKSUM.of(b"key", b"abcdefghi")
    assert CHECKSUM.of_parts(b"key", sums[::-1]) != right
    assert CHECKSUM.of_parts(b"kez", sums) != right
    assert CHECKSUM.of_parts(b"key", sums[:2]) != right
