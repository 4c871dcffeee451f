"""A trace of requests: which chunks each prompt consists of, in the order of arrival.

One JSON object a line, plain or gzipped, in a file or from a pipe. `hash_ids` has one whole number for each
chunk of the prompt, head first, equal where the prompts are equal up to and including that chunk.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, NoReturn, TypeAlias

from ...tiers import ChunkKey, ConfigError
from ..recording.recorder import TRACE_VERSION, Sizes

NUMBER_MAX = 1e18  # of times and sizes; a larger one is a mistake, or an attack on who calculates with it

LINE_BYTES_MAX = 1 << 24  # over a million chunks in one prompt; what is longer is no trace

ID_BYTES = 8

_GZIP_MAGIC = b"\x1f\x8b"

STANDARD_INPUT = Path("-")

SIZES = tuple(field.name for field in fields(Sizes))

_SHOWN_CHARS_MAX = 40

Requests: TypeAlias = list[list[ChunkKey]]
"""The chunks of each request's prompt, head first."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace.

    Attributes:
        span_s: from the first request to the last; None where not every request says when it came.
        sizes: of its chunks, where a server has recorded it.
        left_out: prompts that such a server has not recorded.
    """

    requests: Requests
    span_s: float | None
    sizes: Sizes | None
    left_out: int


def read_trace(path: Path) -> Trace:
    """Read a whole trace; `-` is the standard input.

    Raises:
        ConfigError: it cannot be read, or is none; the message names the file, the line and the field.
    """
    reading = _Reading()
    name = "standard input" if path == STANDARD_INPUT else str(path)
    try:
        with _opened(path) as file:
            for place, line in _lines(file, name):
                reading.take(_object_of(line, place), place)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError("", f"{name}: not a whole gzip file: {error}") from error
    except OSError as error:
        raise ConfigError("", f"{name}: {_reason(error)}") from error
    if not any(reading.requests):
        raise ConfigError("", f"{name}: no request with a chunk in it")
    return Trace(reading.requests, reading.span_s(), reading.sizes, reading.left_out)


class _Reading:
    """What was read so far."""

    def __init__(self) -> None:
        self.requests: Requests = []
        self.sizes: Sizes | None = None
        self.left_out = 0
        self._keys: dict[int, ChunkKey] = {}  # one object for each chunk, however often it comes
        self._started_s = 0.0  # what the times count from
        self._times_s: list[float] = []

    def take(self, line: dict[str, object], place: str) -> None:
        if "kvtier_trace" in line:
            self._begin(line, place)
            return
        self.requests.append(_keys_of(line, self._keys, place))
        if _is_number(line.get("timestamp")):
            self._times_s.append(self._started_s + float(str(line["timestamp"])) / 1000)
        self.left_out += _count(line.get("left_out")) or 0

    def span_s(self) -> float | None:
        return max(self._times_s) - min(self._times_s) if len(self._times_s) == len(self.requests) else None

    def _begin(self, line: dict[str, object], place: str) -> None:
        """A server began to record here; a file may have several such lines, all of the same sizes."""
        if line["kvtier_trace"] != TRACE_VERSION:
            _refuse(
                place, "kvtier_trace", f"{_shown(line['kvtier_trace'])} is not known; only {TRACE_VERSION} is"
            )
        self._started_s = _above_zero(line, "started_unix_s", place)
        sizes = Sizes(
            chunk_bytes=_whole_above_zero(line, "chunk_bytes", place),
            chunk_tokens=_above_zero(line, "chunk_tokens", place),
            tokens_per_id=_whole_above_zero(line, "tokens_per_id", place),
        )
        if self.sizes not in (None, sizes):
            _refuse(place, "chunk_bytes", "the chunks are of other sizes than those of the lines before")
        self.sizes = sizes


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path != STANDARD_INPUT:
        with path.open("rb") as file:
            yield file
    elif sys.stdin is None:
        raise ConfigError("", "standard input: closed")
    else:
        yield sys.stdin.buffer


class _Unread(io.RawIOBase):
    """A stream with its first bytes put back: a pipe has no way back of its own."""

    def __init__(self, first: bytes, rest: IO[bytes]) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        found = self._first[: len(buffer)] or self._rest.read(len(buffer))
        self._first = self._first[len(found) :]
        buffer[: len(found)] = found
        return len(found)


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """Every line that is not blank, with what to call it in messages."""
    first = file.read(len(_GZIP_MAGIC))
    whole = io.BufferedReader(_Unread(first, file))
    number = 0
    with gzip.open(whole) if first == _GZIP_MAGIC else nullcontext(whole) as lines:
        while line := lines.readline(LINE_BYTES_MAX + 1):
            number += 1
            place = f"{name}: line {number}"
            if len(line) > LINE_BYTES_MAX:
                raise ConfigError("", f"{place}: longer than {LINE_BYTES_MAX} bytes, so not a request")
            if not line.isspace():
                yield place, line


def _keys_of(request: dict[str, object], keys: dict[int, ChunkKey], place: str) -> list[ChunkKey]:
    ids = _ids_of(request, place)
    chunks: dict[ChunkKey, None] = {}
    for i, number in enumerate(ids):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 8 * ID_BYTES:
            _refuse(place, f"hash_ids[{i}]", f"should be a whole number below 2^64, not {_shown(number)}")
        key = keys.setdefault(number, number.to_bytes(ID_BYTES, "big"))
        if key in chunks:
            _refuse(place, f"hash_ids[{i}]", f"{number} comes twice, but an id names a whole prefix")
        chunks[key] = None
    return list(chunks)


def _object_of(line: bytes, place: str) -> dict[str, object]:
    try:
        request = json.loads(line.decode().rstrip())
    except json.JSONDecodeError as error:
        raise ConfigError("", f"{place}: not JSON at column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("", f"{place}: not UTF-8 text at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError("", f"{place}: not JSON: {error}") from error
    if not isinstance(request, dict):
        raise ConfigError("", f'{place}: should be an object with "hash_ids", not {_shown(request)}')
    return request


def _ids_of(request: dict[str, object], place: str) -> list[object]:
    if "hash_ids" not in request:
        _refuse(place, "hash_ids", "missing")
    ids = request["hash_ids"]
    if not isinstance(ids, list):
        _refuse(place, "hash_ids", f"should be a list of whole numbers, not {_shown(ids)}")
    return ids


def _above_zero(line: dict[str, object], field: str, place: str) -> float:
    value = line.get(field)
    if not _is_number(value) or float(str(value)) <= 0:
        _refuse(place, field, f"should be a number above zero, not {_shown(value)}")
    return float(str(value))


def _whole_above_zero(line: dict[str, object], field: str, place: str) -> int:
    value = _count(line.get(field))
    if not value:
        _refuse(place, field, f"should be a whole number above zero, not {_shown(line.get(field))}")
    return value


def _count(value: object) -> int | None:
    """A whole number that somebody could have counted, else None."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < NUMBER_MAX:
        return value
    return None


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -NUMBER_MAX < value < NUMBER_MAX


def _refuse(place: str, field: str, message: str) -> NoReturn:
    raise ConfigError("", f"{place}: {field}: {message}")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{text[:1].lower()}{text[1:]}"
