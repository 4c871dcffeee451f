"""Random stores, loads, removals from the slots, corruptions and restarts against a dict.

The model knows every byte that a key may have; the engine may forget chunks, as a cache may, but what it
serves is right, and what was flushed and still fits is there after a restart.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from engine_rig import EngineRig, config
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

KEYS = [b"key-%02d" % i for i in range(24)]
BATCHES = st.lists(st.sampled_from(KEYS), unique=True, min_size=1, max_size=12)


class EngineModel(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kvtier-model-"))
        self.document = config(self.directory / "nvme", pinned_chunks=6)
        self.rig = EngineRig(self.document)
        self.stored: set[bytes] = set()

    @rule(keys=BATCHES)
    def store(self, keys: list[bytes]) -> None:
        assert self.rig.store(keys) == tuple(keys)
        self.stored.update(keys)

    @rule(keys=BATCHES)
    def load(self, keys: list[bytes]) -> None:
        # Everything fits the directory, so nothing that was stored may be missing.
        assert set(self.rig.load(keys)) == self.stored.intersection(keys)

    @rule(keys=BATCHES)
    def lookup(self, keys: list[bytes]) -> None:
        leading = [key in self.stored for key in [*keys, b"absent"]].index(False)
        assert self.rig.engine.lookup(keys) == leading

    @rule()
    def flush(self) -> None:
        self.rig.engine.flush(10)

    @rule()
    def restart(self) -> None:
        self.rig.engine.close()
        self.rig = EngineRig(self.document)

    @rule(keys=BATCHES, more=BATCHES)
    def overlap(self, keys: list[bytes], more: list[bytes]) -> None:
        """Two stores and a load at once, of keys that may be the same."""
        for block, key in enumerate(keys):
            self.rig.device.fill(block, key)
        for block, key in enumerate(more):
            self.rig.device.fill(12 + block, key)
        jobs = [self.rig.engine.store(keys, range(len(keys)))]
        jobs.append(self.rig.engine.store(more, range(12, 12 + len(more))))
        assert [job.wait(10).succeeded for job in jobs] == [tuple(keys), tuple(more)]
        self.stored.update(keys, more)

    @invariant()
    def the_placement_is_sound(self) -> None:
        if hasattr(self, "rig"):
            self.rig.engine.check()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.idle()
            self.rig.engine.close()
            shutil.rmtree(self.directory)


TestEngineModel = pytest.mark.slow(EngineModel.TestCase)
TestEngineModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
