"""A process of a soak: engines on a shared directory, one after the other, in bad weather.

It takes worlds from its parent, a JSON line each, and uses each until it is told to leave it. What it does,
promises and finds wrong it says on a pipe, a JSON line each, written at once: so a kill leaves whole lines.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import select
import threading
import time
import traceback
import weakref
from collections import Counter
from functools import partial
from typing import Any

import psutil
import soak_folder
import torch
from soak_user import USED_OTHERWISE, Blocks, Gate, Share, User, Weights
from soak_weather import StormyFiles, Weather, set_clock_by
from soak_world import BLOCK_BYTES, CHUNKS_EACH, LAYERS, USERS, World

from kvtier.engine import OffloadEngine
from kvtier.tiers.errors import ClosedError, TierError, TierUnavailable
from kvtier.tiers.nvme import tier as nvme_tier

LIFE_S = (0.5, 5.0)  # of an engine
REST_S = 30.0  # for what has to come to an end once nothing goes wrong any more
ANSWER_S = 0.05
M_ARENA_MAX = -8  # of malloc.h


class Pipe:
    """What a process says to its parent, and what it is told."""

    def __init__(self, orders_fd: int, answers_fd: int) -> None:
        self._orders, self._answers = os.fdopen(orders_fd, "rb", buffering=0), answers_fd
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.wrongs = 0

    def say(self, **line: Any) -> None:
        """Count, or say at once: a promise has to be there before a kill."""
        with self._lock:
            if "count" in line:
                self.counts[line["count"]] += line.get("by", 1)
                return
            if "wrong" in line:
                self.wrongs += 1
            data = (json.dumps(line) + "\n").encode()
            while data:
                data = data[os.write(self._answers, data) :]

    def tell_counts(self, **more: Any) -> None:
        with self._lock:
            counts, self.counts = dict(self.counts), Counter()
        self.say(counts=counts, **more)

    def order(self, timeout_s: float | None) -> dict[str, Any] | None:
        """The next order, None where there is none in time.

        Raises:
            EOFError: the parent has gone.
        """
        readable, _, _ = select.select([self._orders], [], [], timeout_s)
        if not readable:
            return None
        line = self._orders.readline()
        if not line:
            raise EOFError
        order: dict[str, Any] = json.loads(line)
        return order


class Life:
    """One process: uses worlds until its parent lets it go, or kills it."""

    def __init__(self, slot: int, seed: int, pipe: Pipe) -> None:
        torch.set_num_threads(1)
        self._slot, self._pipe = slot, pipe
        self._random = random.Random(seed)
        self._baseline: tuple[int, int] | None = None  # threads and descriptors without an engine
        self._began_s = time.monotonic()

    def lead(self) -> None:
        while True:
            order = self._pipe.order(None)
            assert order is not None, "without a limit it comes"
            if "world" in order:
                self._use(World(**order["world"]))
                self._pipe.tell_counts(left=True)

    def _use(self, world: World) -> None:
        """Open engines on it, one after the other, until told to leave."""
        weather = Weather(self._random.getrandbits(32), may_lose=not world.roomy)
        vars(nvme_tier)["Files"] = partial(StormyFiles, weather)  # this process is a soak's own
        set_clock_by(weather)
        soak_folder.WEATHER[:] = [weather]
        users = range(USERS)
        shares = [
            Share(world.keys(self._slot * USERS + user if world.roomy else 0), world.roomy) for user in users
        ]
        while True:
            for share in shares:
                share.pending.clear()  # a flush of the next engine says nothing of this one's
            session = Session(world, self._slot, weather, shares, self._random, self._pipe)
            leaves, closed = session.lead()
            del session
            for name, hits in weather.seen.items():
                self._pipe.say(count=f"fault {name}", by=hits)
            weather.seen.clear()
            weather.calm.set()
            self._rest()
            gc.collect()  # the thread that ended last may have been in it
            if closed() is not None:
                self._pipe.say(wrong="an engine that was closed is kept alive by something")
            weather.calm.clear()
            if leaves:
                return

    def _rest(self) -> None:
        """After a close: everything has to go back to what it was; say how much memory is used."""
        deadline_s = time.monotonic() + REST_S
        while True:
            gc.collect()
            held = threading.active_count(), len(os.listdir("/proc/self/fd"))
            if self._baseline is None and time.monotonic() > deadline_s - REST_S + 1:
                self._baseline = held
            if self._baseline is not None and all(
                now <= was for now, was in zip(held, self._baseline, strict=True)
            ):
                break
            if time.monotonic() > deadline_s:
                threads = sorted(thread.name for thread in threading.enumerate())
                files = sorted(_target(fd) for fd in os.listdir("/proc/self/fd"))
                self._pipe.say(wrong=f"left behind: {held} after {self._baseline}: {threads} {files}")
                self._baseline = held
                break
            time.sleep(ANSWER_S)
        memory = psutil.Process().memory_info()
        own_bytes = memory.rss - memory.shared  # pages of files are no growth
        self._pipe.tell_counts(own_bytes=own_bytes, at_s=time.monotonic() - self._began_s)


class Session:
    """One engine, from its opening to its close."""

    def __init__(
        self,
        world: World,
        slot: int,
        weather: Weather,
        shares: list[Share],
        rng: random.Random,
        pipe: Pipe,
    ) -> None:
        self._world, self._slot, self._weather, self._random, self._pipe = world, slot, weather, rng, pipe
        self._weights = Weights(world.tag(slot))
        self._shares, self._gate = shares, Gate()
        self._resets = 0

    def lead(self) -> tuple[bool, weakref.ref[OffloadEngine]]:
        """Use an engine for a while, and close it; returns whether to leave the world, and the engine."""
        engine = self._engine()
        return self._used(engine), weakref.ref(engine)

    def _used(self, engine: OffloadEngine) -> bool:
        if not self._is_registered(engine):
            return self._leaves(0.1)
        users = self._users(engine)
        for user in users:
            user.start()
        end_s = time.monotonic() + self._random.uniform(*LIFE_S)
        leaves = False
        while time.monotonic() < end_s and not leaves:
            leaves = self._leaves(0.2)
            if self._random.random() < 0.03:
                with self._gate.alone():
                    self._forget(engine)
            json.dumps(engine.stats().as_dict())
        if leaves or self._random.random() < 0.5:
            self._end_gently(engine, users)
        else:
            self._end_at_once(engine, users)
        return leaves

    def _engine(self) -> OffloadEngine:
        world = self._world
        count = USERS * CHUNKS_EACH * world.blocks_per_chunk
        self._tensors = [
            torch.full((count, BLOCK_BYTES), USED_OTHERWISE, dtype=torch.uint8) for _ in range(LAYERS)
        ]
        return OffloadEngine.open(
            world.document(), world.namespace(self._slot), events=self._random.random() < 0.5
        )

    def _is_registered(self, engine: OffloadEngine) -> bool:
        """Start its tiers; False where the weather does not let them start."""
        try:
            engine.register_kv_caches(self._tensors, blocks_per_chunk=self._world.blocks_per_chunk)
        except TierUnavailable:
            self._pipe.say(count="failed_starts")
            engine.close()
            return False
        self._pipe.say(count="starts")
        return True

    def _users(self, engine: OffloadEngine) -> list[User]:
        per_chunk = self._world.blocks_per_chunk
        return [
            User(
                f"user-{index}",
                engine,
                Blocks(self._tensors, index * CHUNKS_EACH * per_chunk, CHUNKS_EACH, per_chunk),
                share,
                self._weights,
                self._gate,
                self._pipe.say,
                self._random.getrandbits(32),
            )
            for index, share in enumerate(self._shares)
        ]

    def _leaves(self, wait_s: float) -> bool:
        order = self._pipe.order(wait_s)
        return order is not None and "leave" in order

    def _forget(self, engine: OffloadEngine) -> None:
        """Clear, or reset: nobody else uses the engine meanwhile."""
        resets = self._random.random() < 0.5
        self._pipe.say(count="resets" if resets else "clears")
        if self._world.roomy:
            self._pipe.say(forgetting=True)
        for share in self._shares:
            share.pending.clear()
        self._weights.lasting = False  # the tier of another package goes on under names of this engine's own
        if resets:
            self._resets += 1
            self._weights.tag += f" {os.getpid()}.{id(self)}.{self._resets}"
        try:
            (engine.reset() if resets else engine.clear()).wait(REST_S)
        except TierError:
            self._pipe.say(count="failed_clears")
            return
        if self._world.roomy:
            for share in self._shares:
                found = engine.contains(share.keys)
                if any(found):
                    self._pipe.say(wrong=f"{'reset' if resets else 'cleared'}, and found: {found}")

    def _end_gently(self, engine: OffloadEngine, users: list[User]) -> None:
        """Let the users end, the weather calm down and everything come to rest; then close."""
        self._weather.calm.set()
        self._join(users)
        deadline_s = time.monotonic() + REST_S
        while engine.stats().pinned_slots and time.monotonic() < deadline_s:
            time.sleep(ANSWER_S)
        if engine.stats().pinned_slots:
            self._pipe.say(wrong=f"{engine.stats().pinned_slots} slots are pinned, and nobody uses them")
        engine.check()
        engine.close()

    def _end_at_once(self, engine: OffloadEngine, users: list[User]) -> None:
        """Close it under its users."""
        for user in users:
            user.closing.set()
        engine.close(self._random.choice((0, 0.2, 5.0, None)))
        self._join(users)

    def _join(self, users: list[User]) -> None:
        for user in users:
            user.stopped.set()
        for user in users:
            user.join(2 * REST_S)
            if user.is_alive():
                self._pipe.say(wrong=f"{user.name} is stuck")


def led(slot: int, seed: int, orders_fd: int, answers_fd: int) -> None:
    """Lead the life of one process until its parent has gone.

    By default glibc keeps what threads free in 8 arenas a core, each for the threads that come to use it: so
    a process grows for its first 250 engines, whether or not they leave anything. With one arena what is
    freed is used again, and what grows is what nobody has freed.
    """
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    pipe = Pipe(orders_fd, answers_fd)
    try:
        Life(slot, seed, pipe).lead()
    except EOFError:
        return
    except ClosedError:
        pipe.say(wrong=traceback.format_exc())
    except BaseException:
        pipe.say(wrong=traceback.format_exc())


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
