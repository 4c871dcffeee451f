"""A pack: chunks of one namespace in a file or a stream, each with the checksum that it has on the drive.

    head      magic; length and checksum of a JSON text: identity, epoch, store
    record    mark, sizes, the chunk's checksum, a checksum of all this; the key; the chunk
    ...
    end       mark, how many records there are, a checksum of both

A chunk's checksum covers namespace, key and bytes, so a record that is wrong is known by itself and the ones
after it are read all the same. Only where a record's sizes are wrong, nothing after it can be found. A pack
without its end is a part of one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from crc32c import crc32c

from ...base import Buffer, ChunkKey
from ...errors import KvtierError
from ..index.records import KEY_BYTES_MAX
from ..io.blocks import scratch
from ..store.namespaces import Identity

HEAD_BYTES_MAX = 1 << 20  # of the JSON text: an identity is a few kilobytes
CHUNK_BYTES_MAX = 1 << 30  # larger ones have no segment: what says so is no record

_MAGIC = b"KVTPACK\x01"
_LENGTH = struct.Struct("<II")
_RECORD = struct.Struct("<4sHII")
_CHECKSUM = struct.Struct("<I")
_RECORD_MARK, _END_MARK = b"KVTc", b"KVTe"


class PackDamaged(KvtierError):
    """What was read is no pack, or cannot be read on."""


class Head(NamedTuple):
    """What a pack is of.

    Attributes:
        store: the uuid of the store that it was made from.
        epoch: the namespace's there.
    """

    identity: Identity
    store: bytes
    epoch: int

    def encode(self) -> bytes:
        document = {**self.identity.to_json(), "store": self.store.hex(), "epoch": self.epoch}
        text = json.dumps(document).encode()
        return _MAGIC + _LENGTH.pack(len(text), crc32c(text)) + text


class Record(NamedTuple):
    """One chunk, as it was read: nobody has compared the checksum yet."""

    key: ChunkKey
    payload: Buffer
    checksum: int


def encode_record(key: ChunkKey, length_bytes: int, checksum: int) -> bytes:
    """What stands before a chunk."""
    return _sealed(_RECORD.pack(_RECORD_MARK, len(key), length_bytes, checksum)) + key


def encode_end(records_count: int) -> bytes:
    """What stands behind the last one."""
    return _sealed(_RECORD.pack(_END_MARK, 0, records_count & 0xFFFFFFFF, 0))


def read_head(stream: IO[bytes]) -> Head:
    """Read the head.

    Raises:
        PackDamaged: there is none, or it is damaged.
    """
    start = stream.read(len(_MAGIC))
    if start[: len(_MAGIC) - 1] != _MAGIC[:-1]:
        raise PackDamaged("not a pack of kvtier's")
    if start != _MAGIC:
        raise PackDamaged(f"a pack of format {start[-1:].hex() or 'unknown'}; this kvtier reads 01")
    lengths = stream.read(_LENGTH.size)
    try:
        text_bytes, checksum = _LENGTH.unpack(lengths)
        text = stream.read(text_bytes) if text_bytes <= HEAD_BYTES_MAX else b""
        if len(text) != text_bytes or crc32c(text) != checksum:
            raise ValueError("wrong checksum")
        document = json.loads(text)
        epoch = document["epoch"]
        if not isinstance(epoch, int) or isinstance(epoch, bool):
            raise ValueError("its epoch is no whole number")
        return Head(Identity.from_json(document), bytes.fromhex(document["store"]), epoch)
    except RecursionError as error:
        raise PackDamaged("the head of the pack is damaged: nested too deeply") from error
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise PackDamaged(f"the head of the pack is damaged: {error}") from error


def read_records(stream: IO[bytes]) -> Iterator[Record]:
    """Every record up to the end.

    Raises:
        PackDamaged: the pack ends early, or what follows cannot be found.
    """
    count = 0
    while True:
        kind, key_bytes, length_bytes, checksum = _read_sizes(stream, count)
        if kind == _END_MARK:
            if length_bytes != count & 0xFFFFFFFF:
                raise PackDamaged(f"the pack has {count} chunks, and its end says {length_bytes}")
            return
        key = stream.read(key_bytes)
        payload = scratch(length_bytes)[:length_bytes]
        if len(key) < key_bytes or _filled(stream, payload) < length_bytes:
            raise PackDamaged(f"the pack ends early, in chunk {count + 1}")
        count += 1
        yield Record(key, payload, checksum)


def _read_sizes(stream: IO[bytes], count: int) -> tuple[bytes, int, int, int]:
    raw = stream.read(_RECORD.size + _CHECKSUM.size)
    if len(raw) < _RECORD.size + _CHECKSUM.size:
        raise PackDamaged(f"the pack ends early, after {count} chunks")
    kind, key_bytes, length_bytes, checksum = _RECORD.unpack_from(raw)
    is_whole = _sealed(raw[: _RECORD.size]) == raw and kind in (_RECORD_MARK, _END_MARK)
    if not is_whole or key_bytes > KEY_BYTES_MAX or (kind == _RECORD_MARK and length_bytes > CHUNK_BYTES_MAX):
        raise PackDamaged(f"the pack is damaged after {count} chunks; the rest of it cannot be read")
    return kind, key_bytes, length_bytes, checksum


def _filled(stream: IO[bytes], buffer: Buffer) -> int:
    done = 0
    while done < len(buffer) and (count := stream.readinto(buffer[done:])):  # type: ignore[attr-defined]
        done += count
    return done


def _sealed(head: bytes) -> bytes:
    return head + _CHECKSUM.pack(crc32c(head))
