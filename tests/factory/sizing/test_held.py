from __future__ import annotations

import asyncio

import pytest

from kvtier.engine.replay.tiers import LogWithoutBytes
from kvtier.factory.sizing.held import chunks_in_log, held
from kvtier.tiers.base import Buffer

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("capacity_bytes", "chunk_bytes"), [(64 * MIB, 64 * KIB), (GIB, 2 * MIB), (GIB + 12345, 360 * KIB)]
)
def test_a_full_log_holds_as_many_chunks_as_was_said(capacity_bytes: int, chunk_bytes: int) -> None:
    log = LogWithoutBytes(
        "nvme", capacity_bytes=capacity_bytes, chunk_bytes=chunk_bytes, write_amplification=1.0
    )
    said = chunks_in_log(capacity_bytes, capacity_bytes, chunk_bytes)

    async def fill() -> list[int]:
        held_chunks = []
        for first in range(0, 3 * said, 64):
            keys = [b"%036d" % number for number in range(first, first + 64)]
            await log.store(keys, [Buffer(b"")] * 64)
            held_chunks.append(log.stats().chunks)
        return held_chunks[len(held_chunks) // 2 :]

    after_a_lap = asyncio.run(fill())
    assert min(after_a_lap) >= 0.93 * said, "one segment of few is empty while it is filled again"
    assert said <= max(after_a_lap) * 1.02


def test_a_drive_that_is_too_small_holds_nothing() -> None:
    assert chunks_in_log(MIB, MIB, 2 * MIB) == 0
    assert chunks_in_log(2 << 40, 2 << 40, 2 * MIB) * 2 * MIB > 0.99 * (2 << 40)


def test_less_room_than_the_store_was_made_for_holds_less_and_below_two_segments_nothing() -> None:
    assert chunks_in_log(2 << 40, GIB, 2 * MIB) < chunks_in_log(GIB, GIB, 2 * MIB)
    assert chunks_in_log(2 << 40, 256 * MIB, 2 * MIB) == 0


def test_chunks_are_counted_in_tokens_of_all_layers() -> None:
    found = held(GIB, 512, chunk_tokens=5.333, prompt_tokens=1000)
    assert (found.tokens, found.prompts) == (2730, 2.73)
