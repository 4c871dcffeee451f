"""An engine that nobody closes ends in order, once it is lost or the interpreter ends."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from engine_rig import EngineRig, config
from lifetime_rig import WAIT_S, Spec, opened

from kvtier.engine import OffloadEngine

SUPPORT = Path(__file__).parents[1] / "support"

ENGINES = 6
KEYS = [b"key-%02d" % i for i in range(20)]

# The hook keeps the interpreter alive until the tier's own upkeep would have failed for want of threads.
FORGETFUL = """
import atexit, sys, time
sys.path.insert(0, {support!r})
from engine_rig import EngineRig, config
from pathlib import Path
atexit.register(time.sleep, 1.5)
rig = EngineRig(config(Path({path!r})))
rig.store({keys!r})
"""


def test_an_engine_that_is_lost_is_closed_and_warned_of() -> None:
    spec = Spec()
    with pytest.warns(ResourceWarning, match="never closed"):
        lose_one(spec)
    assert spec.disk.closed.wait(WAIT_S)
    assert set(spec.disk.chunks) == {b"a"}


def lose_one(spec: Spec) -> None:
    engine = opened(spec)
    engine.store([b"a"], [0]).wait(WAIT_S)
    del engine
    gc.collect()


def test_an_engine_that_was_closed_is_not_warned_of() -> None:
    engine = OffloadEngine(Spec())
    engine.close()
    del engine
    gc.collect()


@pytest.mark.slow
def test_engines_that_were_used_and_closed_leave_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing at all for each of them: a process may open engines for as long as it lives."""
    caplog.set_level(logging.CRITICAL)  # a line that is captured is an object, too
    for _ in range(2):  # what is made once
        use_one(tmp_path / "nvme")
    before = objects_count()
    for _ in range(ENGINES):
        use_one(tmp_path / "nvme")
    assert objects_count() - before < ENGINES


def use_one(path: Path) -> None:
    rig = EngineRig(config(path))
    rig.store(KEYS[:4])
    rig.engine.reset().wait(WAIT_S)
    rig.store(KEYS[:4])
    rig.engine.flush(WAIT_S)
    rig.engine.clear().wait(WAIT_S)
    rig.engine.close()


def objects_count() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.slow
def test_an_engine_that_is_open_when_the_interpreter_ends_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "nvme"
    script = FORGETFUL.format(support=str(SUPPORT), path=str(path), keys=KEYS)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stderr.splitlines() == ["an engine was never closed: closing it"]
    rig = EngineRig(config(path))
    assert rig.engine.lookup(KEYS) == len(KEYS)
    rig.engine.close()
