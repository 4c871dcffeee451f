import threading

from kvtier.tiers.nvme.format.checksum import ChunkChecksum, block_checksum

CHECKSUM = ChunkChecksum(b"n" * 32)


def test_the_crc_is_castagnolis() -> None:
    assert block_checksum(b"123456789") == 0xE3069283


def test_it_covers_namespace_key_length_and_payload() -> None:
    right = CHECKSUM.of(b"key", b"payload")
    assert right == CHECKSUM.of(b"key", memoryview(b"payload"))
    others = [
        ChunkChecksum(b"m" * 32).of(b"key", b"payload"),
        CHECKSUM.of(b"kez", b"payload"),
        CHECKSUM.of(b"key", b"payloae"),
        CHECKSUM.of(b"key", b"payload\0"),
        CHECKSUM.of(b"keyp", b"ayload"),
        CHECKSUM.of(b"ke", b"ypayload"),
    ]
    assert right not in others
    assert len(set(others)) == len(others)


def test_every_flipped_bit_shows() -> None:
    payload = memoryview(bytearray(range(256)))
    right = CHECKSUM.of(b"key", payload)
    for bit in range(0, 2048, 7):
        payload[bit // 8] ^= 1 << bit % 8
        assert CHECKSUM.of(b"key", payload) != right
        payload[bit // 8] ^= 1 << bit % 8


def test_threads_get_the_same_answer() -> None:
    payload, answers = bytes(256 * 1024), []
    threads = [
        threading.Thread(target=lambda: answers.append(CHECKSUM.of(b"key", payload))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {CHECKSUM.of(b"key", payload)}
