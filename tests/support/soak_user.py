"""A user of an engine in a soak: a thread that stores, loads and removes, and compares all bytes."""

from __future__ import annotations

import hashlib
import random
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from kvtier.engine import OffloadEngine
from kvtier.engine.job import Job
from kvtier.tiers.base import Outcome
from kvtier.tiers.errors import ClosedError, NotDurable, TierError

JOB_S = 60.0  # a job that takes longer is stuck: no fault of the weather lasts for more than some seconds
CANCELLED_ODDS = 0.15
USED_OTHERWISE = 0xEE  # what the blocks hold that no job owns

Say = Callable[..., None]
Result = TypeVar("Result", bound=Outcome)


def content(tag: str, key: bytes, size_bytes: int) -> bytes:
    """The bytes of a chunk under these weights; no two chunks and no two places are alike."""
    return hashlib.shake_128(tag.encode() + b"\0" + key).digest(size_bytes)


class Gate:
    """Many go through at a time, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


@dataclass
class Weights:
    """What the chunks of an engine are made by.

    Attributes:
        tag: goes into the bytes of every chunk.
        lasting: whether a later engine finds what this one has stored; not after a reset or a clear.
    """

    tag: str
    lasting: bool = True


class Blocks:
    """Some blocks of the device that belong to one user."""

    def __init__(self, tensors: Sequence[torch.Tensor], first: int, chunks: int, per_chunk: int) -> None:
        self._tensors, self._first, self._per_chunk = tensors, first, per_chunk
        self.chunks = chunks
        self.chunk_bytes = sum(per_chunk * tensor[0].nbytes for tensor in tensors)
        self.use_otherwise()

    def ids(self, count: int) -> range:
        return range(self._first, self._first + count * self._per_chunk)

    def fill(self, chunk: int, data: bytes) -> None:
        parts = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(len(self._tensors), -1)
        for tensor, part in zip(self._tensors, parts, strict=True):
            self._rows(tensor, chunk).copy_(part.view(self._per_chunk, -1))

    def read(self, chunk: int) -> bytes:
        return b"".join(self._rows(tensor, chunk).numpy().tobytes() for tensor in self._tensors)

    def use_otherwise(self) -> None:
        """Overwrite them, as a server does that needs them: a late copy from or to them would show."""
        for tensor in self._tensors:
            self._all(tensor).fill_(USED_OTHERWISE)

    def untouched(self) -> bool:
        return all(bool((self._all(tensor) == USED_OTHERWISE).all()) for tensor in self._tensors)

    def _all(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[self._first : self._first + self.chunks * self._per_chunk]

    def _rows(self, tensor: torch.Tensor, chunk: int) -> torch.Tensor:
        first = self._first + chunk * self._per_chunk
        return tensor[first : first + self._per_chunk]


@dataclass
class Share:
    """What one user has of a world.

    Attributes:
        keys: what it stores and loads.
        own: whether nobody else uses these keys, so that it knows what must be there and what must not.
        pending: what it has stored and no flush has covered.
    """

    keys: list[bytes]
    own: bool
    pending: set[bytes] = field(default_factory=set)


class User(threading.Thread):
    """Uses an engine until it is told to stop, or the engine is closed."""

    def __init__(
        self,
        name: str,
        engine: OffloadEngine,
        blocks: Blocks,
        share: Share,
        weights: Weights,
        gate: Gate,
        say: Say,
        seed: int,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._engine, self._blocks, self._share, self._weights = engine, blocks, share, weights
        self._gate, self._say, self._random = gate, say, random.Random(seed)
        self.stopped = threading.Event()
        self.closing = threading.Event()  # from now on the engine may be closed under us

    def run(self) -> None:
        often, now_and_then = (self._store, self._load) * 3, (self._prefetch, self._remove, self._look)
        acts = (*often, *often, self._flush, self._flush, *now_and_then)
        try:
            while not self.stopped.is_set():
                with self._gate.shared():
                    self._random.choice(acts)()
            self._flushed(JOB_S)
        except ClosedError:
            if not self.closing.is_set():
                self._wrong("closed by nobody")
        except BaseException:
            self._wrong(traceback.format_exc())

    def _flushed(self, timeout: float | None) -> None:
        """Flush; what this user has stored is durable once that has returned."""
        covered = set(self._share.pending)
        try:
            self._engine.flush(timeout)
        except NotDurable as error:
            self._share.pending.difference_update(error.keys)
            self._say(count="told_flushes")
        except (TierError, TimeoutError) as error:
            self._say(count=f"flush: {type(error).__name__}")
        else:
            self._share.pending -= covered
            self._say(count="true_flushes")
            if self._share.own and self._weights.lasting:
                self._say(durable=_texts(covered))

    # --- acts ---------------------------------------------------------------------------------------

    def _store(self) -> None:
        keys = self._some()
        for chunk, key in enumerate(keys):
            self._blocks.fill(chunk, content(self._weights.tag, key, self._blocks.chunk_bytes))
        if self._share.own:
            self._say(storing=_texts(keys))
        job = self._engine.store(keys, self._blocks.ids(len(keys)))
        outcome = self._ended(job)
        self._blocks.use_otherwise()
        if outcome is not None:
            self._say(count="stored", by=len(outcome.succeeded))
            self._share.pending.update(outcome.succeeded)

    def _load(self) -> None:
        keys = self._some()
        if not self._blocks.untouched():
            self._wrong("blocks were written that no job had")
        outcome = self._ended(self._engine.load(keys, self._blocks.ids(len(keys))))
        came = set() if outcome is None else set(outcome.succeeded)
        for chunk, key in enumerate(keys):
            expected = content(self._weights.tag, key, self._blocks.chunk_bytes)
            if key in came and self._blocks.read(chunk) != expected:
                assert outcome is not None
                self._wrong(f"wrong bytes for {key!r} from {outcome.sources.get(key)}")
        self._say(count="loaded", by=len(came))
        self._blocks.use_otherwise()

    def _flush(self) -> None:
        self._flushed(self._random.choice((0.02, 0.5, JOB_S)))

    def _prefetch(self) -> None:
        self._ended(self._engine.prefetch(self._some()))

    def _remove(self) -> None:
        keys = self._some()[:4]
        if self._share.own:
            self._say(removing=_texts(keys))
        self._share.pending.difference_update(keys)
        try:
            self._engine.remove(keys).wait(JOB_S)
        except TierError:
            self._say(count="failed_removals")
            return
        if not self._share.own:
            return
        found = self._engine.contains(keys)
        if found != [None] * len(keys):
            self._wrong(f"removed, and still in {found}")
        if self._weights.lasting:
            self._say(removed=_texts(keys))

    def _look(self) -> None:
        keys = self._some()
        found, leading = self._engine.contains(keys), self._engine.lookup(keys)
        if len(found) != len(keys) or not 0 <= leading <= len(keys):
            self._wrong(f"{len(keys)} keys, and the answers are {found} and {leading}")

    # --- what they share ----------------------------------------------------------------------------

    def _some(self) -> list[bytes]:
        """Some keys in order, as a prompt has them, or any."""
        keys, count = self._share.keys, self._random.randint(1, self._blocks.chunks)
        if self._random.random() < 0.3:
            return self._random.sample(keys, count)
        first = self._random.randrange(len(keys) - count + 1)
        return keys[first : first + count]

    def _ended(self, job: Job[Result]) -> Result | None:
        """The job's result; None where it was cancelled."""
        if self._random.random() < CANCELLED_ODDS:
            self.stopped.wait(self._random.choice((0.0, 0.001, 0.05)))
            job.cancel()
            self._say(count="cancelled")
        try:
            return job.wait(JOB_S)
        except CancelledError:
            return None

    def _wrong(self, what: str) -> None:
        self._say(wrong=f"{self.name}: {what}")


def _texts(keys: Sequence[bytes] | set[bytes]) -> list[str]:
    return [key.decode() for key in sorted(keys)]
