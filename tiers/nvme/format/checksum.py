"""The checksum that every chunk carries on the drive: CRC32C over namespace, key, length and payload.

Because it covers more than the payload, a right payload in the wrong place (another key's extent, another
namespace's segment, another length) fails just as a flipped bit does.
"""

from __future__ import annotations

import struct

from crc32c import crc32c

from ...base import Buffer, ChunkKey

_FRAME = struct.Struct("<HI")  # key length, payload length: no two (key, payload) pairs share a byte stream


class ChunkChecksum:
    """Checksums of one namespace's chunks. Stateless after construction; safe from any thread."""

    __slots__ = ("_seed",)

    def __init__(self, namespace_digest: bytes) -> None:
        self._seed = crc32c(namespace_digest)

    def of(self, key: ChunkKey, payload: Buffer | bytes) -> int:
        """The checksum of `payload` under `key`; gives up the GIL for payloads of 32 KiB and more."""
        frame = _FRAME.pack(len(key), len(payload)) + key
        return int(crc32c(payload, crc32c(frame, self._seed)))


def block_checksum(data: Buffer | bytes) -> int:
    """The checksum of a metadata block."""
    return int(crc32c(data))
