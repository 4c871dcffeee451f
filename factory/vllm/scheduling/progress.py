"""How many tokens of prompts each step computes, as far as lookups and stores tell.

The server names no tokens. It offers the chunks that a step completes, among others: those that the device
had, and those of answers. So a prompt is followed from the first chunk on that was looked up in vain: what
the device has is not looked up, and what is loaded is not looked up in vain. Steps in which a request
completes several chunks, or one in each, compute a prompt. A single chunk is part of an answer, or took
several steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ....engine.movement.prompts import GroupOf
from ....engine.movement.rates import MeasuredPrefill
from ....tiers.base import ChunkKey

Ends: TypeAlias = dict[ChunkKey, int] | None
"""After how many tokens each chunk of a prompt ends, the last one last; None where nobody tells."""


@dataclass(slots=True)
class _Computed:
    """How far a prompt is computed: the group of layers that counts, its last chunk, and in which step."""

    group: bytes
    last: ChunkKey
    step: int


class Progress:
    """What the requests of one server compute. One thread: the scheduler's.

    Args:
        chunk_tokens: tokens that a chunk stands for, by group of layers.
    """

    def __init__(
        self,
        prefill: MeasuredPrefill,
        chunk_tokens: Mapping[bytes, int],
        group_of: GroupOf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prefill = prefill
        self._chunk_tokens = chunk_tokens
        self._group_of = group_of
        self._clock = clock
        # Mutable state:
        self._steps = 0
        self._missed: dict[str, ChunkKey] = {}
        self._computed: dict[str, _Computed] = {}

    def step_begins(self) -> None:
        """The server is at work; it may have been idle before."""
        self._prefill.active(self._clock())

    def step_ends(self) -> None:
        """The results of a step are there."""
        self._steps += 1
        self._prefill.step_ended(self._clock())

    def missed(self, request: str, key: ChunkKey) -> None:
        """A chunk was looked up in vain; of several groups of layers, the first one counts."""
        before = self._missed.setdefault(request, key)
        if self._group_of(before) == self._group_of(key):
            self._missed[request] = key

    def offered(self, request: str, keys: Sequence[ChunkKey]) -> None:
        """A step that is planned completes some of the chunks; others may have been offered before."""
        self.step_begins()
        missed, computed = self._missed.get(request), self._computed.get(request)
        if missed is not None and missed in keys:
            del self._missed[request]
            start, group = keys.index(missed), self._group_of(missed)
        elif computed is not None:
            start, group = keys.index(computed.last) + 1 if computed.last in keys else 0, computed.group
        else:
            return
        new = [key for key in keys[start:] if self._group_of(key) == group]
        if not new:
            return
        in_a_row = computed is not None and self._steps - computed.step <= 1
        if len(new) > 1 or in_a_row:
            self._prefill.planned(len(new) * self._chunk_tokens.get(group, 0))
        self._computed[request] = _Computed(group, new[-1], self._steps)

    def forget(self, request: str) -> None:
        """The request has ended."""
        self._missed.pop(request, None)
        self._computed.pop(request, None)

    def forget_all(self) -> None:
        """Every request stores anew."""
        self._missed.clear()
        self._computed.clear()

    def run_chunks(self, key: ChunkKey, ends: Ends) -> int | None:
        """How many chunks a prompt has from this one on, in its group of layers; None where nobody tells."""
        if ends is None or key not in ends:
            return None
        return (
            1 + max(0, next(reversed(ends.values())) - ends[key]) // self._chunk_tokens[self._group_of(key)]
        )
