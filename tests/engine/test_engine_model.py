"""Random stores, loads, removals, resets, faults of the tiers, flushes by two callers and restarts.

The model knows every byte that a key may have, and what must be there. While no tier fails nothing may be
missing; while one fails the engine may forget, as a cache may. What it serves is right, what a flush that
returned was for is there after a restart, and what was removed is not.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from engine_rig import EngineRig, config
from faults import FailingFiles
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtier.tiers.errors import NotDurable, TierError
from kvtier.tiers.nvme import tier as nvme_tier

KEYS = [b"key-%02d" % i for i in range(24)]
BATCHES = st.lists(st.sampled_from(KEYS), unique=True, min_size=1, max_size=12)
WAIT_S = 60.0
CALLERS = 2


class EngineModel(RuleBasedStateMachine):
    """The engine against three sets: what must be found, what may be, and what a flush has been for."""

    @initialize()
    def open(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kvtier-model-"))
        self.document = config(self.directory / "nvme", pinned_chunks=6)
        self.files = FailingFiles()
        self.files_there = patch.dict(vars(nvme_tier), {"Files": lambda: self.files})
        self.files_there.start()
        self.callers = [ThreadPoolExecutor(1) for _ in range(CALLERS)]
        self.rig = EngineRig(self.document)
        self.present: set[bytes] = set()  # must be found
        self.possible: set[bytes] = set()  # may be found
        self.durable: set[bytes] = set()
        self.stored_by: list[set[bytes]] = [set() for _ in range(CALLERS)]
        self.lasts = True  # whether another life finds what this one stores
        self.is_sound = True  # whether nothing has failed in this life: a breaker may be open for a while

    @rule(keys=BATCHES, caller=st.sampled_from(range(CALLERS)))
    def store(self, keys: list[bytes], caller: int) -> None:
        came = self._by(caller, self.rig.store, keys).result(WAIT_S)
        assert came == tuple(keys)
        self.possible.update(keys)
        self.stored_by[caller].update(keys)
        if self.is_sound:
            self.present.update(keys)

    @rule(keys=BATCHES)
    def load(self, keys: list[bytes]) -> None:
        self._check_found(keys, set(self.rig.load(keys)))

    @rule(keys=BATCHES)
    def lookup(self, keys: list[bytes]) -> None:
        found = self.rig.engine.contains(keys)
        self._check_found(keys, {key for key, tier in zip(keys, found, strict=True) if tier is not None})
        leading = [tier is not None for tier in [*found, None]].index(False)
        if self.is_sound:
            assert self.rig.engine.lookup(keys) == leading

    @rule(keys=BATCHES)
    def prefetch(self, keys: list[bytes]) -> None:
        self._check_found(keys, set(self.rig.engine.prefetch(keys).wait(WAIT_S).succeeded), all_there=False)

    @rule(caller=st.sampled_from(range(CALLERS)))
    def flush(self, caller: int) -> None:
        covered = set(self.stored_by[caller])
        try:
            self._by(caller, self.rig.engine.flush, WAIT_S).result(WAIT_S)
        except TierError as error:
            if self.is_sound:
                raise
            if isinstance(error, NotDurable):
                self.stored_by[caller] -= set(error.keys)
        else:
            self.durable |= covered & self.possible
            self.stored_by[caller].clear()

    @rule(keys=BATCHES)
    def remove(self, keys: list[bytes]) -> None:
        self._forgets(keys)
        with suppress(TierError):
            self.rig.engine.remove(keys).wait(WAIT_S)
            self.possible.difference_update(keys)
            assert self.rig.engine.contains(keys) == [None] * len(keys)

    @precondition(lambda self: self.is_sound)
    @rule()
    def reset(self) -> None:
        self._forgets(KEYS)
        self.rig.engine.reset().wait(WAIT_S)
        self.possible.clear()
        self.lasts = False
        assert self.rig.engine.contains(KEYS) == [None] * len(KEYS)

    @precondition(lambda self: self.is_sound)
    @rule(call=st.sampled_from(("pwritev", "sync_data")))
    def fail(self, call: str) -> None:
        self.files.call, self.is_sound = call, False
        self.present.clear()  # the slots are few: what falls out of them may be nowhere

    @rule()
    def mend(self) -> None:
        self.files.call = ""

    @rule()
    def restart(self) -> None:
        self.files.call = ""
        self.rig.engine.close()
        if not self.lasts:
            self._forgets(KEYS)
            self.possible.clear()
        self.rig = EngineRig(self.document)
        self.lasts = self.is_sound = True
        self.stored_by = [set() for _ in range(CALLERS)]
        found = set(self.rig.load([key for key in KEYS if key in self.possible] or KEYS[:1]))
        assert self.durable <= found <= self.possible
        self.present = set(found)

    @rule(keys=BATCHES, more=BATCHES)
    def overlap(self, keys: list[bytes], more: list[bytes]) -> None:
        """Two stores at once, of keys that may be the same."""
        for block, key in enumerate(keys):
            self.rig.device.fill(block, key)
        for block, key in enumerate(more):
            self.rig.device.fill(12 + block, key)
        jobs = [self.rig.engine.store(keys, range(len(keys)))]
        jobs.append(self.rig.engine.store(more, range(12, 12 + len(more))))
        assert [job.wait(WAIT_S).succeeded for job in jobs] == [tuple(keys), tuple(more)]
        self.possible.update(keys, more)
        if self.is_sound:
            self.present.update(keys, more)

    @invariant()
    def the_placement_is_sound(self) -> None:
        if hasattr(self, "rig"):
            self.rig.engine.check()

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.files.call = ""
        self.rig.engine.close()
        for caller in self.callers:
            caller.shutdown()
        self.files_there.stop()
        shutil.rmtree(self.directory)

    def _by(self, caller: int, call: Any, *arguments: object) -> Future[Any]:
        """Call it on a thread of its own: a flush tells each caller what became of what it stored."""
        return self.callers[caller].submit(call, *arguments)

    def _check_found(self, keys: Sequence[bytes], found: set[bytes], *, all_there: bool = True) -> None:
        assert found <= self.possible
        if all_there and self.is_sound:
            assert found >= self.present.intersection(keys)

    def _forgets(self, keys: Sequence[bytes]) -> None:
        for known in (self.present, self.durable, *self.stored_by):
            known.difference_update(keys)


TestEngineModel = pytest.mark.slow(EngineModel.TestCase)
TestEngineModel.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
