"""Finds the notice boards of the engines on a store, or of all engines that this user may see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .board import Board, decode
from .history import points
from .home import BOARD, HISTORY, PREFIX, SHARED_MEMORY, boards_in, home_of, is_held

STALE_S = 5.0  # several looks were missed: the engine is stopped, or what it asks hangs
FILE_BYTES_MAX = 1 << 20  # far above what an engine writes


def boards_of(path: Path | None, shared_memory: Path = SHARED_MEMORY) -> list[Board]:
    """The boards of living engines that use the directory, or of all; the oldest engine first.

    Root sees those of every user.
    """
    found = [
        board
        for home in _homes(shared_memory)
        for place in boards_in(home)
        if is_held(place) and (board := _read(place)) is not None
    ]
    wanted = None if path is None else os.path.realpath(path)
    chosen = [board for board in found if wanted is None or _uses(board, wanted)]
    return sorted(chosen, key=lambda board: (board.started_unix_s, board.pid))


def is_stale(board: Board, now_unix_s: float) -> bool:
    """Whether the board's numbers are too old to be called numbers of now."""
    return now_unix_s - board.now_unix_s > STALE_S


def _homes(shared_memory: Path) -> Iterator[Path]:
    if os.geteuid() == 0:
        yield from sorted(shared_memory.glob(f"{PREFIX}*"))
    else:
        yield home_of(os.geteuid(), shared_memory)


def _read(place: Path) -> Board | None:
    board = decode(_bytes(place / BOARD))
    return None if board is None else replace(board, history=points(_bytes(place / HISTORY)))


def _bytes(file: Path) -> bytes:
    try:
        with open(file, "rb", opener=_opened) as opened:
            return opened.read(FILE_BYTES_MAX)
    except OSError:
        return b""


def _opened(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _uses(board: Board, wanted: str) -> bool:
    return any(wanted in paths for paths in board.facts.places.values())
