"""Recording prompts: what the file says, and what it must never say."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.engine.recording import recorder as recorder_module
from kvtier.engine.recording.record_file import RecordFile
from kvtier.engine.recording.recorder import Recorder, Sizes
from kvtier.engine.replay.trace import read_trace
from kvtier.tiers import ChunkKey

TOKENS = 128  # of a chunk
SIZES = Sizes(chunk_bytes=1 << 20, chunk_tokens=128.0, tokens_per_id=TOKENS)
Start = Callable[..., Recorder]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Start recorders, which end with the test."""
    started: list[Recorder] = []

    def make(counts: Callable[[ChunkKey], bool] = lambda _: True) -> Recorder:
        started.append(Recorder(path, SIZES, counts, clock=lambda: 5.0))
        return started[-1]

    yield make
    for one in started:
        one.close()


def prompt(*numbers: int, first: int = 0) -> dict[ChunkKey, int]:
    """A prompt whose positions were counted, or, without its head, told by the server."""
    if first:
        return {b"key-%08d" % number: (first + i + 1) * TOKENS for i, number in enumerate(numbers)}
    return {b"key-%08d" % number: i for i, number in enumerate(numbers)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_prompt_is_a_line_and_equal_prefixes_have_equal_numbers(start: Start, path: Path) -> None:
    recorder = start()
    recorder.ended(prompt(1, 2, 3))
    recorder.ended(prompt(1, 2, 4))
    recorder.close()
    head, first, second = lines(path)
    assert head["kvtier_trace"] == 1
    assert (head["chunk_bytes"], head["chunk_tokens"], head["tokens_per_id"]) == (1 << 20, 128.0, 128)
    assert first["hash_ids"][:2] == second["hash_ids"][:2]
    assert len({*first["hash_ids"], *second["hash_ids"]}) == 4
    assert first["timestamp"] == 0
    assert all(0 <= number < 1 << 63 for number in first["hash_ids"])


def test_chunks_are_put_in_the_order_of_the_prompt(start: Start, path: Path) -> None:
    recorder = start()
    recorder.ended(prompt(1, 2, 3))
    recorder.ended(dict(reversed(prompt(1, 2, 3).items())))
    recorder.close()
    _, first, second = lines(path)
    assert first["hash_ids"] == second["hash_ids"]


def test_what_the_device_had_is_put_back_and_what_nobody_knows_is_counted(start: Start, path: Path) -> None:
    recorder = start()
    recorder.ended(prompt(1, 2, 3))
    recorder.ended(prompt(8, 9, first=2))  # its head was never seen
    recorder.ended({b"key-00000001": TOKENS, b"key-00000005": 4 * TOKENS})  # a gap
    recorder.ended(prompt(3, 4, first=2))
    recorder.close()
    _, first, last = lines(path)
    assert last["hash_ids"][:3] == first["hash_ids"]
    assert len(last["hash_ids"]) == 4
    assert last["left_out"] == 2


def test_of_several_groups_one_is_recorded(start: Start, path: Path) -> None:
    recorder = start(lambda key: key.endswith(b"\0"))
    recorder.ended({b"a\0": 0, b"b\0": 1, b"a\1": 0, b"b\1": 1, b"c\1": 2})
    recorder.ended({b"d\1": 0})
    recorder.close()
    _, only = lines(path)
    assert len(only["hash_ids"]) == 2


def test_no_key_is_in_the_file_and_no_two_runs_have_a_number_in_common(start: Start, path: Path) -> None:
    keys = prompt(*range(50))
    for _ in range(2):
        recorder = start()
        recorder.ended(keys)
        recorder.close()
    content = path.read_bytes()
    for key in keys:
        assert key not in content
        assert key.hex().encode() not in content
        assert str(int.from_bytes(key[:8], "big")).encode() not in content
    _, first, _, second = lines(path)
    assert not {*first["hash_ids"]} & {*second["hash_ids"]}


def test_a_burst_is_bounded_and_counted(start: Start, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "PERIOD_S", 3600.0)  # as a thread that gets no turn
    recorder = start()
    for number in range(10_000):
        recorder.ended(prompt(number))
    recorder.close()
    _, first, *others = lines(path)
    assert len(others) + 1 == recorder_module.WAITING_MAX
    assert first["left_out"] == 10_000 - recorder_module.WAITING_MAX


def test_a_file_that_cannot_be_written_is_one_warning_and_the_server_goes_on(
    start: Start, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()
    with caplog.at_level(logging.WARNING):
        recorder = start()
        recorder.ended(prompt(1))
        recorder.close()
    recorder.ended(prompt(2))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "prompts are not recorded any more" in caplog.text


def test_a_full_drive_ends_the_recording_with_one_warning(
    start: Start, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: RecordFile, _line: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordFile, "append", full)
    with caplog.at_level(logging.WARNING):
        recorder = start()
        for number in range(3):
            recorder.ended(prompt(number))
        recorder.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text


def test_closing_again_does_nothing_and_no_thread_stays(start: Start) -> None:
    recorder = start()
    recorder.close()
    recorder.close()
    assert not any(thread.name == "kvtier-record" for thread in threading.enumerate())


def test_what_was_recorded_can_be_replayed(start: Start, path: Path) -> None:
    recorder = start()
    recorder.ended(prompt(1, 2, 3))
    recorder.ended(prompt(9, first=7))
    recorder.ended(prompt(3, 4, first=2))
    recorder.close()
    trace = read_trace(path)
    assert list(map(len, trace.requests)) == [3, 4]
    assert trace.requests[0] == trace.requests[1][:3]
    assert trace.sizes == SIZES
    assert trace.left_out == 1
