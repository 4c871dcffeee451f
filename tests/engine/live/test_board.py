"""Boards as JSON."""

from __future__ import annotations

import json

import pytest

from kvtier.engine.live.board import Board, Facts, decode, encode

FACTS = Facts("library", "m [b]", "0e29", 4096, 128.0, {"nvme": ["/mnt/nvme0"]}, {"nvme": {"cap_bytes": 5}})
BOARD = Board(7, 1.0, 2.0, FACTS, {"tiers": {}, "pending_chunks": {}, "pinned_slots": 0})


def test_a_board_comes_back_as_it_was() -> None:
    assert decode(encode(BOARD)) == BOARD


@pytest.mark.parametrize("length", range(0, len(encode(BOARD)), 7))
def test_a_torn_board_is_none(length: int) -> None:
    assert decode(encode(BOARD)[:length]) is None


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"version": 0}, {"kvtier": "dead"}, {"facts": {}}, {"facts": None}, {"more": 1}],
)
def test_what_another_version_or_program_has_written_is_none(change: dict[str, object]) -> None:
    assert decode(json.dumps({**json.loads(encode(BOARD)), **change}).encode()) is None


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"1", b"\xff\xfe", b"{}"])
def test_what_is_no_board_is_none(data: bytes) -> None:
    assert decode(data) is None
