"""Calls of the library beside store and load: where chunks are, bringing them near, forgetting all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_rig import BLOCKS, Device, EngineRig, config
from lifetime_rig import WAIT_S, Spec, tensors

from kvtier.engine import ChainEvent, OffloadEngine
from kvtier.tiers.base import Failure, RemoveReason
from kvtier.tiers.errors import ClosedError, TierUnavailable

KEYS = [b"key-%02d" % i for i in range(BLOCKS)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[EngineRig]:
    """Its arena holds a quarter of the keys."""
    rig = EngineRig(config(tmp_path / "nvme"))
    yield rig
    rig.engine.close()


def striped(path: Path) -> dict[str, Any]:
    document = config(path)
    nvme = document["tiers"][2]
    nvme["path"] = [{"path": str(path / name)} for name in ("first", "second")]
    return document


def test_each_key_has_the_nearest_tier_that_has_it(rig: EngineRig) -> None:
    rig.store(KEYS)
    rig.engine.flush(WAIT_S)
    near = rig.engine.contains([*KEYS, b"absent"])
    assert near[-1] is None
    assert set(near[:-1]) == {"pinned", "nvme"}
    assert near.count("pinned") <= 8


def test_a_load_says_where_each_chunk_came_from(rig: EngineRig) -> None:
    rig.store(KEYS)
    rig.engine.flush(WAIT_S)
    near = dict(zip(KEYS, rig.engine.contains(KEYS), strict=True))
    far = [key for key in KEYS if near[key] == "nvme"][:3]
    close = [key for key in KEYS if near[key] == "pinned"][:3]
    loaded = rig.engine.load([*close, b"absent", *far], range(7)).wait(WAIT_S)
    assert loaded.sources == {**dict.fromkeys(close, "pinned"), **dict.fromkeys(far, "nvme")}
    assert loaded.succeeded == (*close, *far)
    assert loaded.failed == {b"absent": Failure.MISSING}
    again = rig.engine.load(far, range(3)).wait(WAIT_S)
    assert again.sources == dict.fromkeys(far, "pinned"), "the first load has left them there"
    rig.idle()


def test_what_was_prefetched_is_loaded_from_pinned_memory(rig: EngineRig) -> None:
    rig.store(KEYS)
    rig.engine.flush(WAIT_S)
    wanted = [key for key, where in zip(KEYS, rig.engine.contains(KEYS), strict=True) if where == "nvme"][:4]
    fetched = rig.engine.prefetch([*wanted, b"absent"]).wait(WAIT_S)
    assert fetched.succeeded == tuple(wanted)
    assert fetched.failed == {b"absent": Failure.MISSING}
    assert rig.engine.contains(wanted) == ["pinned"] * 4
    assert rig.load(wanted) == tuple(wanted)
    rig.idle()


def test_more_than_fits_is_prefetched_as_far_as_there_is_room_and_holds_nothing(rig: EngineRig) -> None:
    rig.store(KEYS)
    rig.engine.flush(WAIT_S)
    fetched = rig.engine.prefetch(KEYS).wait(WAIT_S)
    assert set(fetched.succeeded) | set(fetched.failed) == set(KEYS)
    rig.idle()
    assert rig.load(KEYS) == tuple(KEYS)


@pytest.mark.parametrize("document", [config, striped])
@pytest.mark.parametrize("method", ["clear", "reset"])
def test_nothing_stored_before_is_found_after_it_here_or_after_a_restart(
    tmp_path: Path, document: Any, method: str
) -> None:
    rig = EngineRig(document(tmp_path))
    rig.store(KEYS)
    rig.engine.flush(WAIT_S)
    getattr(rig.engine, method)().wait(WAIT_S)
    assert rig.engine.contains(KEYS) == [None] * len(KEYS)
    assert rig.load(KEYS) == ()
    assert rig.store(KEYS[:8]) == tuple(KEYS[:8])
    rig.engine.flush(WAIT_S)
    assert rig.load(KEYS) == tuple(KEYS[:8])
    rig.idle()
    rig.engine.close()
    rig = EngineRig(document(tmp_path))
    kept = KEYS[:8] if method == "clear" else []
    assert rig.load(KEYS) == tuple(kept), "after a reset no name says what the weights are"
    rig.engine.close()


async def test_registering_and_closing_can_be_awaited(tmp_path: Path) -> None:
    device = Device()
    engine = OffloadEngine.open(config(tmp_path), {"model": "m"})
    await engine.registering(device.tensors)
    assert (await engine.store([b"a"], [0])).succeeded == (b"a",)
    with pytest.raises(ValueError, match="registered already"):
        engine.registering(device.tensors)
    await engine.aclose(None)
    await engine.aclose()
    with pytest.raises(ClosedError):
        engine.registering(device.tensors)


async def test_a_registration_that_failed_or_was_cancelled_may_be_tried_again() -> None:
    spec = Spec()
    engine = OffloadEngine(spec)
    spec.error = TierUnavailable("disk", "no such drive")
    with pytest.raises(TierUnavailable):
        await engine.registering(tensors())
    spec.error = None
    spec.may_start.clear()
    started = engine.registering(tensors())
    started.cancel()
    started.wait_ended()
    spec.may_start.set()
    await engine.registering(tensors())
    assert engine.lookup([b"a"]) == 0
    await engine.aclose()


async def test_a_close_ends_a_registration_that_is_awaited() -> None:
    spec = Spec()
    spec.may_start.clear()
    engine = OffloadEngine(spec)
    started = engine.registering(tensors())
    await engine.aclose()
    with pytest.raises(ClosedError):
        await started


def test_events_tell_what_tiers_stored_and_removed(tmp_path: Path) -> None:
    device = Device()
    with OffloadEngine.open(config(tmp_path), {"model": "m"}, events=True) as engine:
        engine.register_kv_caches(device.tensors)
        engine.store([b"a", b"b"], [0, 1]).wait(WAIT_S)
        engine.flush(WAIT_S)
        engine.remove([b"a"]).wait(WAIT_S)
        seen = engine.events()
        assert engine.events() == []
    assert all(isinstance(event, ChainEvent) for event in seen)
    assert _keys(seen, "pinned", None) == _keys(seen, "nvme", None) == {b"a", b"b"}
    assert _keys(seen, "nvme", RemoveReason.REQUESTED) == {b"a"}


def _keys(events: list[ChainEvent], tier: str, removed: RemoveReason | None) -> set[bytes]:
    return {key for event in events if event.tier == tier and event.removed is removed for key in event.keys}


def test_events_are_refused_where_none_are_kept(rig: EngineRig) -> None:
    with pytest.raises(ValueError, match="events=True"):
        rig.engine.events()
