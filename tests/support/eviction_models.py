"""Slow models of the eviction policies: plain lists of lines, one victim at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol
from zlib import crc32

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.pinned.eviction import Evictable, PromptId
from kvtier.tiers.pinned.eviction.reuse import ARMS, FIRST_ARM, LEAD_HITS, LEAD_SHARE
from kvtier.tiers.pinned.eviction.s3fifo import USES_MAX
from kvtier.tiers.pinned.eviction.shadow import Arm

Placed = Iterable[tuple[ChunkKey, int]]


class SlowLine:
    def __init__(self, prompt: PromptId) -> None:
        self.prompt = prompt
        self.position_of: dict[ChunkKey, int] = {}
        self.stamp = 0

    def from_the_tail(self) -> list[ChunkKey]:
        return sorted(self.position_of, key=lambda key: -self.position_of[key])


class SlowLines:
    """Lines, the oldest first."""

    def __init__(self) -> None:
        self.all: list[SlowLine] = []
        self.passed: list[SlowLine] = []  # in the sweep under way

    def keys(self) -> list[ChunkKey]:
        return [key for line in [*self.all, *self.passed] for key in line.position_of]

    def find(self, key: ChunkKey) -> SlowLine | None:
        return next((line for line in [*self.all, *self.passed] if key in line.position_of), None)

    def of(self, prompt: PromptId) -> SlowLine | None:
        return next((line for line in self.all if line.prompt == prompt), None)

    def line(self, prompt: PromptId) -> SlowLine:
        line = self.of(prompt)
        if line is None:
            line = SlowLine(prompt)
            self.all.insert(0, line)
        return line

    def arrive(self, prompt: PromptId) -> SlowLine:
        line = self.of(prompt) or SlowLine(prompt)
        self.all = [other for other in self.all if other is not line] + [line]
        return line

    def remove(self, key: ChunkKey) -> None:
        line = self.find(key)
        if line is not None:
            del line.position_of[key]

    def oldest(self, spare: PromptId | None) -> SlowLine | None:
        for _ in range(2 * len(self.all) + 1):
            if self.all and not self.all[0].position_of:
                self.all.pop(0)
            elif self.all and self.all[0].prompt == spare:
                self.all.append(self.all.pop(0))
        return self.all[0] if self.all and self.all[0].prompt != spare else None

    def skip(self, line: SlowLine) -> None:
        self.all.remove(line)
        self.passed.append(line)

    def idle_behind_tails(self, evictable: Evictable) -> list[ChunkKey]:
        return [key for line in self.passed for key in line.from_the_tail() if evictable(key)]

    def end(self) -> None:
        for line in self.passed:
            meanwhile = self.of(line.prompt)
            if meanwhile is not None:
                self.all.remove(meanwhile)
                line.position_of |= meanwhile.position_of
            self.all.append(line)
        self.passed = []


class Model(Protocol):
    lists: list[SlowLines]

    def arrive(self, prompt: PromptId) -> None: ...
    def insert(self, prompt: PromptId, placed: Placed) -> None: ...
    def touch(self, prompt: PromptId, placed: Placed) -> None: ...
    def forget(self, key: ChunkKey) -> None:
        """Everything but its place in the lists, where it has one."""

    def victim(self, evictable: Evictable, spare: PromptId | None) -> ChunkKey | None:
        """Take the tail of a line; None where every line was passed over."""

    def left(self, key: ChunkKey, lines: SlowLines) -> None: ...
    def settle(self) -> None: ...


def evict(model: Model, count: int, evictable: Evictable, spare: PromptId | None) -> list[ChunkKey]:
    victims: list[ChunkKey] = []
    while len(victims) < count and (key := model.victim(evictable, spare)) is not None:
        victims.append(key)
    for lines in model.lists:
        for key in lines.idle_behind_tails(evictable)[: max(0, count - len(victims))]:
            lines.remove(key)
            model.left(key, lines)
            victims.append(key)
        lines.end()
    model.settle()
    return victims


class LruModel:
    def __init__(self, capacity_chunks: int) -> None:
        self.lines = SlowLines()
        self.lists = [self.lines]

    def arrive(self, prompt: PromptId) -> None:
        self.lines.arrive(prompt)

    def insert(self, prompt: PromptId, placed: Placed) -> None:
        self.lines.line(prompt).position_of |= dict(placed)

    def touch(self, prompt: PromptId, placed: Placed) -> None:
        line = self.lines.arrive(prompt)
        for key, position in placed:
            if self.lines.find(key):
                self.lines.remove(key)
                line.position_of[key] = position

    def forget(self, key: ChunkKey) -> None:
        pass

    def victim(self, evictable: Evictable, spare: PromptId | None) -> ChunkKey | None:
        while line := self.lines.oldest(spare):
            key = line.from_the_tail()[0]
            if evictable(key):
                self.lines.remove(key)
                return key
            self.lines.skip(line)
        return None

    def left(self, key: ChunkKey, lines: SlowLines) -> None:
        pass

    def settle(self) -> None:
        pass


class ArcModel:
    def __init__(self, capacity_chunks: int) -> None:
        self.capacity_chunks = capacity_chunks
        self.p = 0
        self.t1, self.t2 = self.lists = [SlowLines(), SlowLines()]
        self.b1: list[ChunkKey] = []
        self.b2: list[ChunkKey] = []

    def arrive(self, prompt: PromptId) -> None:
        self.t1.arrive(prompt)
        self.t2.arrive(prompt)

    def insert(self, prompt: PromptId, placed: Placed) -> None:
        once, again = self.t1.line(prompt), self.t2.line(prompt)
        for key, position in placed:
            if key in self.b1:
                self.p = min(self.capacity_chunks, self.p + max(1, len(self.b2) // len(self.b1)))
            if key in self.b2:
                self.p = max(0, self.p - max(1, len(self.b1) // len(self.b2)))
            (again if key in self.b1 + self.b2 else once).position_of[key] = position
            self.forget(key)
        self.settle()

    def touch(self, prompt: PromptId, placed: Placed) -> None:
        once, again = self.t1.arrive(prompt), self.t2.arrive(prompt)
        for key, position in placed:
            if key in once.position_of:
                once.position_of[key] = position
            elif self.t1.find(key) or self.t2.find(key):
                self.t1.remove(key)
                self.t2.remove(key)
                again.position_of[key] = position

    def forget(self, key: ChunkKey) -> None:
        for ghosts in (self.b1, self.b2):
            if key in ghosts:
                ghosts.remove(key)

    def victim(self, evictable: Evictable, spare: PromptId | None) -> ChunkKey | None:
        while True:
            once, again = self.t1.oldest(spare), self.t2.oldest(spare)
            from_once = once and (not again or len(self.t1.keys()) > self.p)
            lines, line = (self.t1, once) if from_once else (self.t2, again)
            if line is None:
                return None
            key = line.from_the_tail()[0]
            if evictable(key):
                lines.remove(key)
                self.left(key, lines)
                return key
            lines.skip(line)

    def left(self, key: ChunkKey, lines: SlowLines) -> None:
        (self.b1 if lines is self.t1 else self.b2).append(key)

    def settle(self) -> None:
        while self.b1 and len(self.t1.keys()) + len(self.b1) > self.capacity_chunks:
            self.b1.pop(0)
        while len(self.b1) + len(self.b2) > self.capacity_chunks:
            self.b2.pop(0)


class S3FifoModel:
    def __init__(self, capacity_chunks: int) -> None:
        self.capacity_chunks = capacity_chunks
        self.small, self.main = self.lists = [SlowLines(), SlowLines()]
        self.round: SlowLine | None = None  # what of one line of main goes round again
        self.ghosts: list[ChunkKey] = []
        self.uses: dict[ChunkKey, int] = {}

    def arrive(self, prompt: PromptId) -> None:
        self.small.arrive(prompt)
        self.main.arrive(prompt)
        if self.round and self.round.prompt == prompt:
            self.end_round()

    def insert(self, prompt: PromptId, placed: Placed) -> None:
        small, main = self.small.line(prompt), self.main.line(prompt)
        for key, position in placed:
            (main if key in self.ghosts else small).position_of[key] = position
            self.forget(key)

    def touch(self, prompt: PromptId, placed: Placed) -> None:
        self.arrive(prompt)
        for key, position in placed:
            lines = self.small if self.small.find(key) else self.main
            own, line = lines.line(prompt), lines.find(key)
            if line is None and self.round and key in self.round.position_of:
                line = self.round
            if line is None:
                continue
            if line is not own:
                self.uses[key] = min(USES_MAX, self.uses.get(key, 0) + 1)
                del line.position_of[key]
            own.position_of[key] = position

    def forget(self, key: ChunkKey) -> None:
        self.uses.pop(key, None)
        if key in self.ghosts:
            self.ghosts.remove(key)
        if self.round:
            self.round.position_of.pop(key, None)

    def victim(self, evictable: Evictable, spare: PromptId | None) -> ChunkKey | None:
        while True:
            small, main = self.small.oldest(spare), self.main.oldest(spare)
            if self.round and not (main and main.prompt == self.round.prompt):
                self.end_round()
                main = self.main.oldest(spare)
            is_full = len(self.small.keys()) >= max(1, self.capacity_chunks // 10)
            from_small = small and (not main or is_full)
            lines, line = (self.small, small) if from_small else (self.main, main)
            if line is None:
                return None
            key = line.from_the_tail()[0]
            if self.uses.get(key):
                self.reprieve(lines, line, key)
            elif evictable(key):
                lines.remove(key)
                self.left(key, lines)
                return key
            else:
                lines.skip(line)

    def reprieve(self, lines: SlowLines, line: SlowLine, key: ChunkKey) -> None:
        position = line.position_of.pop(key)
        if lines is self.small:
            self.uses[key] = 0
            self.main.arrive(line.prompt).position_of[key] = position
            if self.round and self.round.prompt == line.prompt:
                self.end_round()
            return
        self.uses[key] -= 1
        if not self.round or not self.round.position_of:
            self.round = SlowLine(line.prompt)
        self.round.position_of[key] = position

    def end_round(self) -> None:
        ended, self.round = self.round, None
        if ended and ended.position_of:
            self.main.arrive(ended.prompt).position_of |= ended.position_of

    def left(self, key: ChunkKey, lines: SlowLines) -> None:
        self.uses.pop(key, None)
        if lines is self.small:
            self.ghosts.append(key)

    def settle(self) -> None:
        del self.ghosts[: max(0, len(self.ghosts) - self.capacity_chunks)]


class SlowShadow:
    """One arm of `reuse`, chunk by chunk."""

    def __init__(self, capacity_chunks: int, arm: Arm) -> None:
        self.capacity_chunks, self.arm = capacity_chunks, arm
        self.once: list[ChunkKey] = []
        self.again: list[ChunkKey] = []
        self.used_at: dict[ChunkKey, int] = {}
        self.left_at: dict[ChunkKey, int] = {}
        self.clock = self.evictions = 0
        self.hits = 0.0

    def use(self, key: ChunkKey) -> None:
        self.clock += 1
        lists = [part for part in (self.once, self.again) if key in part]
        for part in lists:
            part.remove(key)
        self.hits += len(lists)
        left_at = self.left_at.pop(key, None)
        near = self.arm.near_capacities * self.capacity_chunks
        is_again = lists or (left_at is not None and self.evictions - left_at < near)
        (self.again if is_again else self.once).append(key)
        self.used_at[key] = self.clock
        while len(self.once) + len(self.again) > self.capacity_chunks:
            self.evict()

    def evict(self) -> None:
        ages = [self.clock - self.used_at[part[0]] if part else -1 for part in (self.once, self.again)]
        is_once = self.once and (not self.again or ages[0] * self.arm.once_weight >= ages[1])
        self.evictions += 1
        self.left_at[(self.once if is_once else self.again).pop(0)] = self.evictions
        self.left_at = dict(list(self.left_at.items())[-4 * self.capacity_chunks :])


class ReuseModel:
    def __init__(self, capacity_chunks: int) -> None:
        self.capacity_chunks = capacity_chunks
        self.once, self.again = self.lists = [SlowLines(), SlowLines()]
        self.left_at: dict[ChunkKey, int] = {}
        self.clock = self.evictions = self.sampled = 0
        self.shadows = [SlowShadow(max(1, capacity_chunks // 8), arm) for arm in ARMS]
        self.chosen = self.shadows[FIRST_ARM]

    def arrive(self, prompt: PromptId) -> None:
        for lines in self.lists:
            lines.arrive(prompt).stamp = self.clock

    def insert(self, prompt: PromptId, placed: Placed) -> None:
        placed = list(placed)
        again, once = self.again.line(prompt), self.once.line(prompt)
        for key, position in placed:
            left_at = self.left_at.pop(key, None)
            near = self.chosen.arm.near_capacities * self.capacity_chunks
            is_again = left_at is not None and self.evictions - left_at < near
            (again if is_again else once).position_of[key] = position
        self.accessed([key for key, _ in placed])

    def touch(self, prompt: PromptId, placed: Placed) -> None:
        once, again = self.once.arrive(prompt), self.again.arrive(prompt)
        used = []
        for key, position in placed:
            if key in once.position_of:
                once.position_of[key] = position
            elif self.once.find(key) or self.again.find(key):
                used += [key] if key not in again.position_of else []
                self.once.remove(key)
                self.again.remove(key)
                again.position_of[key] = position
        self.accessed(used)
        once.stamp = again.stamp = self.clock

    def accessed(self, keys: list[ChunkKey]) -> None:
        self.clock += len(keys)
        sample = [key for key in reversed(keys) if crc32(key) % 8 == 0]
        for key in sample:
            for shadow in self.shadows:
                shadow.use(key)
        self.sampled += len(sample)
        if self.sampled >= 16 * max(1, self.capacity_chunks // 8):
            self.sampled = 0
            for shadow in self.shadows:
                shadow.hits /= 2
        if sample:
            best = max(self.shadows, key=lambda shadow: shadow.hits)
            if best.hits >= self.chosen.hits * LEAD_SHARE + LEAD_HITS:
                self.chosen = best

    def forget(self, key: ChunkKey) -> None:
        self.left_at.pop(key, None)

    def victim(self, evictable: Evictable, spare: PromptId | None) -> ChunkKey | None:
        while True:
            once, again = self.once.oldest(spare), self.again.oldest(spare)
            weight = self.chosen.arm.once_weight
            is_once = once and (not again or (self.clock - once.stamp) * weight >= self.clock - again.stamp)
            lines, line = (self.once, once) if is_once else (self.again, again)
            if line is None:
                return None
            key = line.from_the_tail()[0]
            if evictable(key):
                lines.remove(key)
                self.left(key, lines)
                return key
            lines.skip(line)

    def left(self, key: ChunkKey, lines: SlowLines) -> None:
        self.evictions += 1
        self.left_at[key] = self.evictions

    def settle(self) -> None:
        self.left_at = dict(list(self.left_at.items())[-4 * self.capacity_chunks :])


MODELS: Mapping[str, Callable[[int], Model]] = {
    "lru": LruModel,
    "arc": ArcModel,
    "s3fifo": S3FifoModel,
    "reuse": ReuseModel,
}
