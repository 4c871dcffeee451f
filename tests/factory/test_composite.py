"""A chain built from a document: what its tiers are called, and when each is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from engine_rig import CHUNK_BYTES, EngineRig, config
from nvme_rig import made, names, opened

from kvtier.engine import lifetime
from kvtier.factory import composite, registry
from kvtier.factory.base import TierConfig, TierContext, unique_name
from kvtier.factory.composite import CompositeSpec
from kvtier.factory.config import parse_config, probe_config, resolve_config, shortages
from kvtier.tiers import ConfigError, TierUnavailable
from kvtier.tiers.base import Invalidates, Tier, ability
from kvtier.tiers.breaker import Breaker, BreakerState
from kvtier.tiers.pinned.tier import PinnedTier
from kvtier.tiers.testing import MemoryTier

KEYS = [b"one", b"two"]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class StuckConfig(TierConfig):
    load_deadline_s: float


class StuckFactory:
    """Makes tiers whose loads never end."""

    Config = StuckConfig

    @staticmethod
    async def open(config: StuckConfig, context: TierContext) -> Tier:
        tier = MemoryTier()
        tier.gate.clear()
        return tier


@pytest.mark.parametrize(
    ("taken", "name"),
    [
        ([], "nvme"),
        (["pinned"], "nvme"),
        (["pinned", "nvme"], "nvme1"),
        (["nvme", "nvme1"], "nvme2"),
        (["nvme1"], "nvme"),
    ],
)
def test_a_name_that_is_taken_gets_a_number(taken: list[str], name: str) -> None:
    assert unique_name("nvme", taken) == name


class FailingFactory:
    """Opens nothing."""

    Config = TierConfig

    @staticmethod
    async def open(config: TierConfig, context: TierContext) -> Tier:
        raise TierUnavailable("failing", "no drive for it")


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.TIERS, "places", dict(registry.TIERS.places))
    registry.register_tier("stuck", __name__, "StuckFactory")
    registry.register_tier("failing", __name__, "FailingFactory")
    registry.register_tier("endless", __name__, "EndlessFactory")


def two_drives(path: Path) -> dict[str, Any]:
    document = config(path / "first")
    document["tiers"].append({**document["tiers"][2], "path": str(path / "second")})
    return document


def test_each_of_two_drives_has_numbers_of_its_own(tmp_path: Path) -> None:
    rig = EngineRig(two_drives(tmp_path))
    try:
        rig.store(KEYS)
        rig.engine.flush(10)
        stats = rig.engine.stats()
    finally:
        rig.engine.close()
    assert list(stats.tiers) == ["pinned", "nvme", "nvme1"]
    for name in stats.tiers:
        assert stats.tiers[name].chunks == len(KEYS)
        assert stats.tiers[name].counters["stored_bytes"] == len(KEYS) * CHUNK_BYTES


async def test_a_tier_below_may_be_left_out_of_fills(tmp_path: Path) -> None:
    document = two_drives(tmp_path)
    document["tiers"][2]["fill"] = False
    spec = CompositeSpec.from_config(document)
    await spec.start(part_bytes=CHUNK_BYTES, parts=1, identity={})
    assert spec.unfilled == frozenset({"nvme"})
    await spec.close()


@pytest.mark.parametrize(("recompute", "may"), [({}, True), ({"recompute": "never"}, False)])
def test_what_is_sooner_computed_is_left_below_unless_the_document_says_never(
    tmp_path: Path, recompute: dict[str, str], may: bool
) -> None:
    assert CompositeSpec.from_config({**two_drives(tmp_path), **recompute}).may_recompute is may


def _is_given_up(tier: Tier) -> bool:
    """Whether its breaker has opened; a trial may be due by now."""
    return tier.stats().gauges["breaker_state"] != BreakerState.CLOSED


@pytest.mark.usefixtures("_registered")
async def test_each_tier_is_given_up_at_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(composite, "Breaker", partial(Breaker, clock=clock))
    stuck = [{"type": "stuck", "load_deadline_s": seconds} for seconds in (2, 9)]
    pinned = {"type": "pinned", "capacity": CHUNK_BYTES}
    spec = CompositeSpec.from_config({"version": 1, "tiers": [{"type": "gpu"}, pinned, *stuck]})
    await spec.start(part_bytes=CHUNK_BYTES, parts=1, identity={})
    buffers = [memoryview(bytearray(CHUNK_BYTES))]
    loads = [asyncio.create_task(tier.load(KEYS[:1], buffers)) for tier in spec.lower]
    await asyncio.sleep(0)
    assert spec.load_deadlines_s == {"memory": 2, "memory1": 9}
    given_up = []
    for clock.now_s in (1.0, 3.0, 10.0):
        given_up.append([tier.name for tier in spec.lower if _is_given_up(tier)])
    for load in loads:
        load.cancel()
    await asyncio.gather(*loads, return_exceptions=True)
    await spec.close()
    assert given_up == [[], ["memory"], ["memory", "memory1"]]


class EndlessTier(MemoryTier):
    async def close(self) -> None:
        await asyncio.Event().wait()


class EndlessFactory:
    """Makes tiers that hang as they are closed."""

    Config = TierConfig

    @staticmethod
    async def open(config: TierConfig, context: TierContext) -> Tier:
        return EndlessTier()


@pytest.mark.usefixtures("_registered")
def test_tiers_that_hang_as_they_are_closed_do_not_keep_the_arena_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 2 * composite.CLOSE_S < lifetime.TIERS_S, "two may hang, and the arena's turn comes"
    monkeypatch.setattr(composite, "CLOSE_S", lifetime.STEP_S / 100)
    monkeypatch.setattr(lifetime, "STEP_S", lifetime.STEP_S / 100)
    pinned = {"type": "pinned", "capacity": 4 * CHUNK_BYTES}
    endless = [{"type": "endless"}] * 2
    rig = EngineRig({"version": 1, "tiers": [{"type": "gpu"}, pinned, *endless]})
    closed: list[PinnedTier] = []
    monkeypatch.setattr(PinnedTier, "close", _also(PinnedTier.close, closed.append))
    rig.engine.close()
    assert [tier.name for tier in closed] == ["pinned"]


def _also(
    close: Callable[[PinnedTier], Coroutine[Any, Any, None]], call: Callable[[PinnedTier], None]
) -> Callable[[PinnedTier], Coroutine[Any, Any, None]]:
    async def both(tier: PinnedTier) -> None:
        await close(tier)
        call(tier)

    return both


async def started(spec: CompositeSpec) -> None:
    await spec.start(part_bytes=CHUNK_BYTES, parts=1, identity={})


@pytest.mark.usefixtures("_registered")
async def test_a_tier_that_cannot_be_opened_closes_those_above_it(tmp_path: Path) -> None:
    document = config(tmp_path / "store")
    document["tiers"].append({"type": "failing"})
    spec = CompositeSpec.from_config(document)
    with pytest.raises(TierUnavailable, match="no drive for it"):
        await started(spec)
    assert spec.lower == []
    store = await opened(tmp_path / "store", chunk_bytes=CHUNK_BYTES)  # nobody holds it
    await store.close()


async def test_a_directory_that_is_refused_is_so_before_any_other_is_made(tmp_path: Path) -> None:
    made(tmp_path / "second", 0o755)
    spec = CompositeSpec.from_config(two_drives(tmp_path))
    with pytest.raises(ConfigError, match=r"^tiers\[3\]\.path: .* is open to other users"):
        await started(spec)
    assert names(tmp_path) == ["second"]


World = Callable[[Path, dict[str, Any]], None]

WORLDS: dict[str, World] = {
    "nothing there": lambda path, document: None,
    "an empty directory": lambda path, document: made(path, 0o700),
    "a directory open to others": lambda path, document: made(path, 0o755),
    "somebody's files": lambda path, document: made(path, 0o700, {"photo.jpg": ""}),
    "lost facts": lambda path, document: made(path, 0o700, {"segments": ""}),
    "a newer format": lambda path, document: made(path, 0o700, {"kvtier.json": '{"format": 99}'}),
    "junk for facts": lambda path, document: made(path, 0o700, {"kvtier.json": "junk"}),
    "a file in its place": lambda path, document: path.touch(),
    "a capacity too small": lambda path, document: document["tiers"][2].update(capacity="1MiB"),
    "an arena too large": lambda path, document: document["tiers"][1].update(capacity="100%"),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
async def test_a_start_accepts_what_a_check_accepts_without_a_warning(tmp_path: Path, world: World) -> None:
    document = config(tmp_path / "store")
    world(tmp_path / "store", document)
    checked, before = True, names(tmp_path)
    try:
        parsed = parse_config(document)
        resolved = resolve_config(parsed, chunk_bytes=CHUNK_BYTES)
        probe_config(resolved, chunk_bytes=CHUNK_BYTES)
        checked = not shortages(resolved, chunk_bytes=CHUNK_BYTES)
    except ConfigError:
        checked = False
    assert names(tmp_path) == before
    spec = CompositeSpec.from_config(document)
    if checked:
        await started(spec)
        await spec.close()
    else:
        with pytest.raises((ConfigError, TierUnavailable)):
            await started(spec)
        assert names(tmp_path) == before


class ShelfTier(MemoryTier):
    """A tier of another package that outlives its chain, written as if there were one model."""

    def __init__(self, chunks: dict[bytes, bytes]) -> None:
        super().__init__("shelf")
        self.chunks = chunks

    async def store(self, keys, buffers):
        assert all(len(key) > len(KEYS[0]) for key in keys)
        return await super().store(keys, buffers)

    def rename(self, name: str) -> None:
        raise AssertionError("it guards nothing, whatever methods it has")

    def divide(self, keys):
        raise AssertionError("the keys are not the chain's")


class ShelfFactory:
    Config = TierConfig
    shelf: ClassVar[dict[bytes, bytes]] = {}

    @classmethod
    async def open(cls, config: TierConfig, context: TierContext) -> Tier:
        return ShelfTier(cls.shelf)


def on_shelf(namespace: dict[str, str], **document: Any) -> EngineRig:
    pinned = {"type": "pinned", "capacity": 8 * CHUNK_BYTES}
    shelf = {"type": "ShelfFactory", "module_path": __name__}
    return EngineRig({"version": 1, "tiers": [{"type": "gpu"}, pinned, shelf], **document}, namespace)


def shelved(rig: EngineRig, *, put: bool = False) -> int:
    """How many keys are found after a restart; `put` stores them first."""
    if put:
        rig.store(KEYS)
        rig.engine.flush(10)
    found = rig.engine.lookup(KEYS)
    assert rig.load(KEYS[:found]) == tuple(KEYS[:found])
    rig.engine.close()
    return found


def test_a_tier_of_another_package_never_serves_another_namespace_or_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ShelfFactory, "shelf", {})
    assert shelved(on_shelf({"model": "a"}), put=True) == len(KEYS)
    assert shelved(on_shelf({"model": "b"})) == 0
    assert shelved(on_shelf({"model": "a"}, weights_epoch=1)) == 0
    assert shelved(on_shelf({"model": "a"})) == len(KEYS)


def test_a_tier_of_another_package_serves_nothing_of_the_old_weights_after_a_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ShelfFactory, "shelf", {})
    rig = on_shelf({"model": "a"})
    rig.store(KEYS)
    rig.engine.flush(10)
    (shelf,) = rig.engine._spec.lower
    invalidates = ability(shelf, Invalidates)  # type: ignore[type-abstract]
    assert invalidates is not None
    rig.engine._lifetime.loop.submit(invalidates.invalidate()).result(10)
    assert list(shelf.lookup(KEYS)) == [False] * len(KEYS)
    rig.engine.close()
