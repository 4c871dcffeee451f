"""Keeps evidence of chunks that failed their checksum: what was expected, and the bytes that were there."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from ...base import Buffer
from ..io.blocks import BLOCK_BYTES, aligned
from ..io.files import Files

FILES_MAX = 64  # a pattern shows in fewer
HEAD_BYTES_MAX = BLOCK_BYTES  # of the line before the bytes: a key of 256 bytes is 512 in hex


class Quarantine:
    """A bounded directory of evidence; the oldest goes first. Blocking; one thread and process at a time.

    The bound goes with the store's cap, which any process may change: so each call is given it.
    """

    def __init__(self, files: Files, path: Path) -> None:
        self._files, self._path = files, path

    def add(self, facts: Mapping[str, object], payload: Buffer | bytes, limit_bytes: int) -> None:
        """Keep one line of JSON and, after it, the bytes: as many as fit.

        Raises:
            OSError: the file system refused.
        """
        head = json.dumps(facts).encode() + b"\n"
        payload = payload[: max(0, limit_bytes - 2 * HEAD_BYTES_MAX)]
        size_bytes = aligned(len(head) + len(payload))
        if size_bytes + BLOCK_BYTES > limit_bytes:
            return
        self._keep(FILES_MAX - 1, limit_bytes - size_bytes)
        path = self._path / f"{max(0, time.time_ns()):020d}.chunk"
        with path.open("xb") as file:
            path.chmod(0o600)
            file.write(head)
            file.write(payload)

    def trim(self, limit_bytes: int) -> None:
        """Give up what is beyond the bound.

        Raises:
            OSError: the file system refused.
        """
        self._keep(FILES_MAX, limit_bytes)

    def _keep(self, files_max: int, limit_bytes: int) -> None:
        kept = [(path, path.lstat().st_blocks * 512) for path in sorted(self._path.glob("*.chunk"))]
        # One more block is kept free: the directory itself grows by one.
        while kept and (len(kept) > files_max or sum(b for _, b in kept) + BLOCK_BYTES > limit_bytes):
            self._files.unlink(kept.pop(0)[0])
