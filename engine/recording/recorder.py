"""Records prompts: a number for each of their chunks, the same for the same prefix.

    {"kvtier_trace": 1, "started_unix_s": 1795724315, "chunk_bytes": 2097152, "chunk_tokens": 16, …}
    {"timestamp": 1520, "hash_ids": [7211, 982, …]}        milliseconds since then; head first

The format is that of public traces, with a line before the first request. A number is a keyed hash of a
chunk's key, and the key of the hash is forgotten with the process: nobody can look for a text that he knows.
What still shows is how long prompts are, when they came, and which begin alike.

A prompt whose head is not known, and one for which there was no time, is left out; the next line says how
many.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ...tiers.base import ChunkKey
from .lineage import Lineage
from .record_file import RecordFile

logger = logging.getLogger(__name__)

TRACE_VERSION = 1
WAITING_MAX = 4096  # prompts of one period; a server that ends more in a second leaves some out
PERIOD_S = 1.0  # between two looks: the server is not to wake anybody
END_WAIT_S = 2.0  # for the last lines; only a file system that hangs takes longer

_SALT_BYTES = 32
_ID_BITS = 63  # of a number: every reader of JSON that has 64-bit integers reads it right


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a trace says of its chunks.

    Attributes:
        chunk_bytes: of one chunk, in a slot and on a drive.
        chunk_tokens: tokens that a chunk stands for, of all layers.
        tokens_per_id: tokens that one number stands for: more, where a model's layers are in several groups.
    """

    chunk_bytes: int
    chunk_tokens: float
    tokens_per_id: int


class Recorder:
    """Writes the prompts of one server to a file, in a thread of its own.

    Threads: `ended` on one thread, where it appends and never waits; `close` on any. Whatever fails ends the
    recording with one warning, and nothing else.

    Args:
        counts: whether a chunk is recorded, by its key: one of several groups of layers stands for all.
    """

    def __init__(
        self,
        path: Path,
        sizes: Sizes,
        counts: Callable[[ChunkKey], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._sizes, self._counts, self._clock = path, sizes, counts, clock
        self._salt = os.urandom(_SALT_BYTES)
        self._started_s, self._started_unix_s = clock(), int(time.time())
        # Appended to by the server's thread, taken from by ours:
        self._waiting: deque[tuple[float, Mapping[ChunkKey, int]]] = deque()
        self._late = 0  # raised by the server's thread alone
        # Our thread's own:
        self._lineage = Lineage()
        self._left_out = self._late_told = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvtier-record", daemon=True)
        self._thread.start()

    def ended(self, positions: Mapping[ChunkKey, int]) -> None:
        """Note a prompt that has ended: the position of each of its chunks, which nobody changes any more.

        Counted from 0, or else the token that each chunk ends with, as vLLM tells it.
        """
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append((self._clock(), positions))
        else:
            self._late += 1

    def close(self) -> None:
        """Write what waits, within a bound. Idempotent."""
        self._stop.set()
        self._thread.join(END_WAIT_S)

    # On our thread.

    def _run(self) -> None:
        try:
            file = RecordFile(self._path, self._head)
            try:
                while not self._stop.wait(PERIOD_S):
                    self._write(file)
                self._write(file)
            finally:
                file.close()
        except OSError as error:
            logger.warning("kvtier: prompts are not recorded any more: %s", error)
        except Exception:
            logger.exception("kvtier: prompts are not recorded any more")

    def _head(self) -> str:
        start = {"kvtier_trace": TRACE_VERSION, "started_unix_s": self._started_unix_s}
        return json.dumps({**start, **asdict(self._sizes)})

    def _write(self, file: RecordFile) -> None:
        for _ in range(len(self._waiting)):
            ended_s, positions = self._waiting.popleft()
            found = sorted((place, key) for key, place in positions.items() if self._counts(key))
            if not found:
                continue
            places = self._counted([place for place, _ in found])
            is_gapless = places == list(range(places[0], places[0] + len(places)))
            ids = [self._id(key) for _, key in found] if is_gapless else []
            whole = self._lineage.whole(ids, places[0]) if ids else None
            if whole is None:
                self._left_out += 1
            else:
                file.append(self._line(round(1000 * (ended_s - self._started_s)), whole))

    def _counted(self, places: list[int]) -> list[int]:
        """Positions in chunks: whoever counts them himself begins with 0, a server tells where each ends."""
        if places[0] == 0:
            return places
        return [end_token // self._sizes.tokens_per_id - 1 for end_token in places]

    def _id(self, key: ChunkKey) -> int:
        digest = hashlib.blake2b(key, key=self._salt, digest_size=8).digest()
        return int.from_bytes(digest, "big") >> (64 - _ID_BITS)

    def _line(self, timestamp_ms: int, ids: list[int]) -> str:
        late = self._late
        left_out = self._left_out + late - self._late_told
        self._left_out, self._late_told = 0, late
        said = {"left_out": left_out} if left_out else {}
        return json.dumps({"timestamp": timestamp_ms, "hash_ids": ids, **said}, separators=(",", ":"))
