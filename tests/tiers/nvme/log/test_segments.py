from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.tiers.nvme.format.codec import SegmentName
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.log.budget import Facts
from kvtier.tiers.nvme.log.segments import CLAIM_BYTE, READERS_BYTE, Segments

FACTS = Facts(b"s" * 16, 16 * BLOCK_BYTES, 1 << 20)


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    (tmp_path / "segments").mkdir()
    return Segments(Files(), tmp_path, FACTS)


@pytest.fixture
def fd(segments: Segments) -> Iterator[int]:
    """Segment 7, claimed."""
    fd = segments.claim(7, create=True)
    assert fd is not None
    yield fd
    segments.files.close(fd)


def test_a_claimed_segment_cannot_be_claimed_again(segments: Segments, fd: int) -> None:
    assert segments.claim(7) is None
    with segments.claimed(7) as file:
        assert file is None
    segments.files.unlock(fd, CLAIM_BYTE)
    with segments.claimed(7, 3) as file:
        assert file is not None
        assert file.name == SegmentName(FACTS.store, 7, 3)
        assert file.size_blocks == 16
        assert segments.claim(7) is None
    with segments.claimed(7) as file:
        assert file is not None, "a claim for a while has an end"


def test_a_segment_that_is_read_can_be_claimed_but_not_overwritten(segments: Segments, fd: int) -> None:
    segments.files.unlock(fd, CLAIM_BYTE)
    reader = segments.open(7)
    assert segments.files.try_lock(reader, READERS_BYTE, exclusive=False)
    assert segments.lock(7, CLAIM_BYTE, READERS_BYTE) is None
    with segments.claimed(7) as file:
        assert file is not None, "the attempt to lock both has given up the claim"
    segments.files.close(reader)


def test_a_segment_without_a_file_is_none(segments: Segments) -> None:
    assert not segments.exists(7)
    assert segments.claim(7) is None
    with segments.opened(7) as file:
        assert file is None
    with segments.claimed(7) as file:
        assert file is None
    with pytest.raises(FileNotFoundError):
        segments.open(7)


def test_files_are_listed_by_number_and_others_are_not(segments: Segments, fd: int) -> None:
    (segments.path(7).parent / "probe").touch()
    (segments.path(7).parent / "x.seg").touch()
    assert segments.paths() == {7: segments.path(7)}


def test_room_is_taken_once_and_given_back_while_the_file_is_open(segments: Segments, fd: int) -> None:
    assert not segments.is_allocated(fd)
    segments.allocate(7, fd)
    assert segments.is_allocated(fd)
    segments.allocate(7, fd)
    segments.remove(7, fd)
    assert not segments.exists(7)
    assert os.fstat(fd).st_blocks == 0


def test_a_file_is_closed_where_its_use_fails(segments: Segments, fd: int) -> None:
    with pytest.raises(OSError, match="Input/output"), segments.opened(7):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
