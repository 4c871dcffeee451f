"""Evidence of chunks that failed their checksum: what was expected, and the bytes that were there."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from .base import Buffer
from .files import BLOCK_BYTES, Files, aligned

FILES_MAX = 64  # a pattern shows in fewer
HEAD_BYTES_MAX = BLOCK_BYTES  # of the line before the bytes: a key of 256 bytes is 512 in hex


class Quarantine:
    """A bounded directory of evidence; the oldest goes first. Blocking; one thread and process at a time."""

    def __init__(self, files: Files, path: Path, limit_bytes: int) -> None:
        self._files, self._path, self._limit_bytes = files, path, limit_bytes

    def add(self, facts: Mapping[str, object], payload: Buffer | bytes) -> None:
        """Keep one line of JSON and, after it, the bytes: as many as fit.

        Raises:
            OSError: the file system refused.
        """
        head = json.dumps(facts).encode() + b"\n"
        payload = payload[: max(0, self._limit_bytes - 2 * HEAD_BYTES_MAX)]
        size_bytes = aligned(len(head) + len(payload))
        if size_bytes + BLOCK_BYTES > self._limit_bytes:
            return
        # One more block is kept free: the directory itself grows by one.
        self._make_room(size_bytes + BLOCK_BYTES)
        path = self._path / f"{time.time_ns():020d}.chunk"
        with path.open("xb") as file:
            path.chmod(0o600)
            file.write(head)
            file.write(payload)

    def _make_room(self, size_bytes: int) -> None:
        kept = [(path, path.stat().st_blocks * 512) for path in sorted(self._path.glob("*.chunk"))]
        while kept and (len(kept) >= FILES_MAX or size_bytes + sum(b for _, b in kept) > self._limit_bytes):
            self._files.unlink(kept.pop(0)[0])
