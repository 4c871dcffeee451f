"""The checksum that every chunk carries on the drive: CRC32C over namespace, key, length and payload.

Because it covers more than the payload, a right payload in the wrong place (another key's extent, another
namespace's segment, another length) fails just as a flipped bit does.

A large chunk is moved in parts, by several threads at once, and each takes the CRC of its part. A CRC is a
remainder of polynomials over GF(2), so that of two parts together follows from theirs: the first one's is
multiplied by x^(8 n), where n is the length of the second in bytes, and added to the second one's. Neither
`crc32c` nor `google-crc32c` offers that. It takes 7 us a part, for which a drive takes some hundred.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache

from crc32c import crc32c

from ...base import Buffer, ChunkKey

_FRAME = struct.Struct("<HI")  # key length, payload length: no two (key, payload) pairs share a byte stream

# Polynomials are written as the CRC is: the highest bit is the coefficient of x^0.
_CASTAGNOLI = 0x82F63B78
_ONE = 1 << 31
_X_8 = 1 << 23
SHIFTS_KEPT = 64  # lengths of parts; the chunks of a store have few lengths


class ChunkChecksum:
    """Checksums of one namespace's chunks. Stateless after construction; safe from any thread."""

    __slots__ = ("_seed",)

    def __init__(self, namespace_digest: bytes) -> None:
        self._seed = crc32c(namespace_digest)

    def of(self, key: ChunkKey, payload: Buffer | bytes) -> int:
        """The checksum of `payload` under `key`; gives up the GIL for payloads of 32 KiB and more."""
        return int(crc32c(payload, self._start(key, len(payload))))

    def of_part(self, payload: Buffer | bytes) -> int:
        """The checksum of a part of a chunk, to be joined by `of_parts`."""
        return block_checksum(payload)

    def of_parts(self, key: ChunkKey, parts: Sequence[tuple[int, int]]) -> int:
        """The checksum of a chunk that was moved in parts: that of each, and its length in bytes."""
        crc = self._start(key, sum(size_bytes for _, size_bytes in parts))
        for part_crc, size_bytes in parts:
            crc = _product(crc, _shift(size_bytes)) ^ part_crc
        return crc

    def _start(self, key: ChunkKey, payload_bytes: int) -> int:
        return int(crc32c(_FRAME.pack(len(key), payload_bytes) + key, self._seed))


def document_checksum(document: Mapping[str, object]) -> int:
    """The checksum of a JSON object, by what it says; the order of its fields counts."""
    return block_checksum(json.dumps(document).encode())


def block_checksum(data: Buffer | bytes) -> int:
    """The checksum of a metadata block."""
    return int(crc32c(data))


@lru_cache(maxsize=SHIFTS_KEPT)
def _shift(size_bytes: int) -> int:
    """x^(8 size_bytes) modulo the polynomial."""
    power, square = _ONE, _X_8
    while size_bytes:
        if size_bytes & 1:
            power = _product(power, square)
        square = _product(square, square)
        size_bytes >>= 1
    return power


def _product(a: int, b: int) -> int:
    """The product of two polynomials modulo the polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_CASTAGNOLI if b & 1 else 0)
    return product
