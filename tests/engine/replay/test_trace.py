from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvtier.engine.recording.recorder import Sizes
from kvtier.engine.replay import trace as trace_module
from kvtier.engine.replay.trace import read_trace
from kvtier.tiers import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def write(file: Path, *lines: str) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def request(*ids: object) -> str:
    return json.dumps({"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": ids})


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_trace(file)
    return str(caught.value)


def test_each_line_is_a_request_and_each_id_a_chunk(file: Path) -> None:
    requests = read_trace(write(file, request(1, 2), request(1, 3), request())).requests
    assert [len(keys) for keys in requests] == [2, 2, 0]
    assert requests[0][0] == requests[1][0]
    assert len({*requests[0], *requests[1]}) == 3


def test_other_fields_are_not_looked_at(file: Path) -> None:
    trace = read_trace(write(file, '{"hash_ids": [1], "timestamp": "noon", "user": null, "left_out": "x"}'))
    assert (len(trace.requests), trace.span_s, trace.left_out) == (1, None, 0)


def test_blank_lines_are_no_requests(file: Path) -> None:
    assert len(read_trace(write(file, "", request(1), "  ", request(2))).requests) == 2


def test_a_gzipped_trace_is_known_by_its_content(file: Path) -> None:
    plain = read_trace(write(file, request(1, 2)))
    file.write_bytes(gzip.compress(file.read_bytes()))
    assert read_trace(file) == plain


@contextmanager
def piped(content: bytes) -> Iterator[int]:
    """The reading end of a pipe through which the content comes byte by byte, then all the rest."""
    reading, writing = os.pipe()

    def write_all() -> None:
        os.write(writing, content[:1])
        with os.fdopen(writing, "wb") as file:
            file.write(content[1:])

    writer = threading.Thread(target=write_all)
    writer.start()
    try:
        yield reading
    finally:
        os.close(reading)
        writer.join()


@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_may_come_through_a_pipe(file: Path, packed: bool) -> None:
    plain = read_trace(write(file, *(request(i, i + 1) for i in range(20_000))))
    content = file.read_bytes()
    with piped(gzip.compress(content) if packed else content) as reading:
        assert read_trace(Path(f"/dev/fd/{reading}")) == plain


@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_may_come_from_the_standard_input(
    file: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read_trace(write(file, request(1, 2), request(1, 3)))
    content = gzip.compress(file.read_bytes()) if packed else file.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_trace(Path("-")) == plain
    assert not sys.stdin.buffer.closed, "it is not ours to close"


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (io.TextIOWrapper(io.BytesIO(b"{")), "line 1: not JSON at column 2: Expecting property name"),
        (io.TextIOWrapper(io.BytesIO()), "no request with a chunk in it"),
        (None, "closed"),
    ],
)
def test_the_standard_input_has_its_name_in_messages(
    stdin: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert refusal(Path("-")).startswith(f"standard input: {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON at column 2: Expecting property name enclosed in double quotes"),
        ("[1]", 'should be an object with "hash_ids", not [1]'),
        ('{"hash_id": [1]}', "hash_ids: missing"),
        ('{"hash_ids": 7}', "hash_ids: should be a list of whole numbers, not 7"),
        ('{"hash_ids": [1, "x"]}', 'hash_ids[1]: should be a whole number below 2^64, not "x"'),
        ('{"hash_ids": [true]}', "hash_ids[0]: should be a whole number below 2^64, not true"),
        ('{"hash_ids": [1.5]}', "hash_ids[0]: should be a whole number below 2^64, not 1.5"),
        ('{"hash_ids": [-1]}', "hash_ids[0]: should be a whole number below 2^64, not -1"),
        (
            '{"hash_ids": [18446744073709551616]}',
            "hash_ids[0]: should be a whole number below 2^64, not 18446744073709551616",
        ),
        ('{"hash_ids": [4, 5, 4]}', "hash_ids[2]: 4 comes twice, but an id names a whole prefix"),
    ],
)
def test_a_bad_line_is_named_with_its_field(file: Path, line: str, message: str) -> None:
    write(file, request(1), "", line)
    assert refusal(file) == f"{file}: line 3: {message}"


def test_a_line_that_is_not_text_is_named(file: Path) -> None:
    file.write_bytes(request(1).encode() + b"\n\xff\xfe\xfa\n")
    assert refusal(file).startswith(f"{file}: line 2: not UTF-8 text at byte 0")


def test_json_nested_too_deeply_is_not_a_request(file: Path) -> None:
    assert refusal(write(file, "[" * 100_000)).startswith(f"{file}: line 1: ")


def test_a_file_without_line_ends_is_not_read_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "LINE_BYTES_MAX", 1000)
    file.write_bytes(b" " * 1001)
    assert refusal(file) == f"{file}: line 1: longer than 1000 bytes, so not a request"


def test_a_long_value_is_shortened_in_the_message(file: Path) -> None:
    message = refusal(write(file, json.dumps({"hash_ids": "x" * 1000})))
    assert message.endswith("x…")
    assert len(message) < len(str(file)) + 150


def test_a_missing_file_and_a_folder_are_refused(file: Path) -> None:
    assert refusal(file) == f"{file}: no such file or directory"
    assert refusal(file.parent) == f"{file.parent}: is a directory"


def test_an_empty_trace_is_refused(file: Path) -> None:
    assert refusal(write(file)) == f"{file}: no request with a chunk in it"
    assert refusal(write(file, request())) == f"{file}: no request with a chunk in it"


def test_half_a_gzip_file_is_refused(file: Path) -> None:
    whole = gzip.compress("\n".join(request(i) for i in range(1000)).encode())
    file.write_bytes(whole[: len(whole) // 2])
    assert refusal(file).startswith(f"{file}: not a whole gzip file: ")


def test_a_damaged_gzip_file_is_refused(file: Path) -> None:
    whole = bytearray(gzip.compress("\n".join(request(i) for i in range(1000)).encode()))
    whole[-8] ^= 1  # of the checksum
    file.write_bytes(whole)
    assert refusal(file).startswith(f"{file}: not a whole gzip file: ")


HEAD = {
    "kvtier_trace": 1,
    "started_unix_s": 100,
    "chunk_bytes": 4096,
    "chunk_tokens": 8.0,
    "tokens_per_id": 16,
}


def test_the_time_is_from_the_first_request_to_the_last_where_all_say_it(file: Path) -> None:
    first, last = '{"hash_ids": [1], "timestamp": 500}', '{"hash_ids": [2], "timestamp": 2000.5}'
    assert read_trace(write(file, last, first)).span_s == pytest.approx(1.5005)
    assert read_trace(write(file, first, last, '{"hash_ids": [3]}')).span_s is None
    assert read_trace(write(file, first, '{"hash_ids": [3], "timestamp": NaN}')).span_s is None


def test_a_trace_of_ones_own_says_its_sizes_and_goes_on_after_a_restart(file: Path) -> None:
    first = '{"hash_ids": [1], "timestamp": 0, "left_out": 2}'
    later = json.dumps({**HEAD, "started_unix_s": 200})
    second = '{"hash_ids": [2], "timestamp": 5000, "left_out": 1}'
    trace = read_trace(write(file, json.dumps(HEAD), first, later, second))
    assert trace.sizes == Sizes(4096, 8.0, 16)
    assert (len(trace.requests), trace.span_s, trace.left_out) == (2, 105.0, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kvtier_trace": 2}, "kvtier_trace: 2 is not known; only 1 is"),
        ({"chunk_bytes": "4KiB"}, 'chunk_bytes: should be a whole number above zero, not "4KiB"'),
        ({"tokens_per_id": None}, "tokens_per_id: should be a whole number above zero, not null"),
        ({"chunk_tokens": 0}, "chunk_tokens: should be a number above zero, not 0"),
        ({"chunk_bytes": 4096.5}, "chunk_bytes: should be a whole number above zero, not 4096.5"),
        ({"chunk_bytes": 1e300}, "chunk_bytes: should be a whole number above zero, not 1e+300"),
        ({"tokens_per_id": 0.5}, "tokens_per_id: should be a whole number above zero, not 0.5"),
        ({"chunk_tokens": 10**400}, f"chunk_tokens: should be a number above zero, not 1{'0' * 39}…"),
        ({"chunk_tokens": 9.0}, "chunk_bytes: the chunks are of other sizes than those of the lines before"),
    ],
)
def test_a_head_that_is_wrong_is_named(file: Path, changed: dict[str, object], message: str) -> None:
    assert refusal(write(file, json.dumps(HEAD), json.dumps({**HEAD, **changed}))) == (
        f"{file}: line 2: {message}"
    )


@pytest.mark.parametrize("odd", [10**400, 1e300, 1.5, -1, True, "x"])
def test_an_odd_count_of_what_was_left_out_is_left_aside(file: Path, odd: object) -> None:
    line = json.dumps({"timestamp": 0, "hash_ids": [1], "left_out": odd})
    assert read_trace(write(file, line)).left_out == 0


def test_a_time_that_no_clock_shows_is_none(file: Path) -> None:
    line = json.dumps({"timestamp": 10**400, "hash_ids": [1]})
    assert read_trace(write(file, line)).span_s is None
