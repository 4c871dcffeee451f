"""The bytes of a pack: what is written is read, and every damaged byte is noticed."""

from __future__ import annotations

import io
import struct

import pytest
from crc32c import crc32c
from nvme_rig import IDENTITY, filled, keys_of

from kvtier.tiers.nvme.admin.pack_file import (
    Head,
    PackDamaged,
    encode_end,
    encode_record,
    read_head,
    read_records,
)
from kvtier.tiers.nvme.format.checksum import ChunkChecksum
from kvtier.tiers.nvme.store.namespaces import Identity

HEAD = Head(Identity(IDENTITY.fields, "a model"), b"store-of-16-byte", 3)
KEYS = keys_of(0, 3)
SIZE_BYTES = 100
CHECKSUM = ChunkChecksum(IDENTITY.digest)


def pack_of(end: int = len(KEYS)) -> bytes:
    records = b"".join(
        encode_record(key, len(buffer), CHECKSUM.of(key, buffer)) + bytes(buffer)
        for key, buffer in zip(KEYS, filled(KEYS, SIZE_BYTES), strict=True)
    )
    return HEAD.encode() + records + encode_end(end)


def head_of(text: bytes) -> bytes:
    return b"KVTPACK\x01" + struct.pack("<II", len(text), crc32c(text)) + text


def read(data: bytes) -> tuple[Head, list[bytes], list[bytes], str]:
    """The head, the keys that are right, those that are not, and what ended the reading."""
    stream = io.BytesIO(data)
    head = read_head(stream)
    keys: dict[bool, list[bytes]] = {True: [], False: []}
    try:
        for key, payload, checksum in read_records(stream):
            keys[CHECKSUM.of(key, payload) == checksum].append(key)
    except PackDamaged as error:
        return head, keys[True], keys[False], str(error)
    return head, keys[True], keys[False], ""


def test_what_is_written_is_read() -> None:
    assert read(pack_of()) == (HEAD, KEYS, [], "")
    assert read(HEAD.encode() + encode_end(0)) == (HEAD, [], [], "")


def test_no_flipped_bit_goes_unnoticed() -> None:
    whole = pack_of()
    head_bytes = len(HEAD.encode())
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 4
        if position < head_bytes:
            with pytest.raises(PackDamaged):
                read(bytes(damaged))
            continue
        _, right, wrong, error = read(bytes(damaged))
        assert wrong or error, f"a flipped bit at {position}"
        assert right == [key for key in KEYS if key in right], "what is right keeps its order"
        assert error or len(right) == len(KEYS) - 1, "a damaged chunk costs no other"


def test_a_pack_cut_anywhere_says_that_it_ends_early_and_keeps_what_came_before() -> None:
    whole = pack_of()
    for end in range(len(HEAD.encode()), len(whole)):
        _, right, wrong, error = read(whole[:end])
        assert error.startswith("the pack ends early")
        assert right == KEYS[: len(right)]
        assert not wrong


def test_an_end_that_counts_otherwise_is_damage() -> None:
    assert read(pack_of(end=2))[3] == "the pack has 3 chunks, and its end says 2"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a pack of kvtier's"),
        (b"PK\x03\x04 something else", "not a pack of kvtier's"),
        (b"KVTPACK\x02" + bytes(100), "a pack of format 02; this kvtier reads 01"),
        (HEAD.encode()[:12], "the head of the pack is damaged"),
        (HEAD.encode()[:-1], "the head of the pack is damaged"),
        (head_of(b"[" * 100_000), "the head of the pack is damaged: nested too deeply"),
        (head_of(b'{"name": "m", "fields": [], "store": "00", "epoch": 1e400}'), "the head of the pack"),
        (head_of(b'{"name": "m", "fields": [], "store": "00", "epoch": true}'), "the head of the pack"),
    ],
)
def test_what_is_no_pack_is_refused_by_its_beginning(data: bytes, message: str) -> None:
    with pytest.raises(PackDamaged, match=message):
        read_head(io.BytesIO(data))
