"""What vLLM is told of chunks that enter and leave the tiers, by its own interface of events."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from chain_rig import Rig, rigged
from vllm.v1.kv_offload import base
from vllm.v1.kv_offload.base import OffloadingKVEventsConfig, OffloadKey, make_offload_key

from kvtier.engine.events import ChainEvent, EventLog
from kvtier.factory.vllm import events
from kvtier.factory.vllm.events import ServerEvents, failure_event, offloading_events
from kvtier.tiers.base import RemoveReason
from kvtier.tiers.testing import pattern

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]

BLOCKS = 4  # of a chunk
TOKENS = 16  # of a block


class Router:
    """A subscriber, behind vLLM's own tracker: which blocks it believes to be where."""

    def __init__(self) -> None:
        # Imported here, where the warnings of what it imports are expected.
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.events import (
            OffloadingEventGroupSpec,
            OffloadingEventsTracker,
        )

        self._layers = OffloadingEventGroupSpec("full", None)
        self.tracker = OffloadingEventsTracker(OffloadingKVEventsConfig(True, True))
        self.blocks: dict[tuple[str | None, str | None], set[Any]] = {}

    def describe(self, number: int) -> OffloadKey:
        """Let vLLM note what the blocks of a chunk are, as it does for a store; returns its key."""
        hashes = [bytes([number, block]) * 16 for block in range(BLOCKS)]
        request: Any = SimpleNamespace(
            block_hashes=hashes, all_token_ids=list(range(BLOCKS * TOKENS)), lora_request=None
        )
        group: Any = SimpleNamespace(
            hashes_per_chunk=BLOCKS,
            tokens_per_chunk=BLOCKS * TOKENS,
            tokens_per_block=TOKENS,
            sliding_window_size_in_chunks=None,
            group_idx=0,
            kv_event_group_spec=self._layers,
        )
        key = make_offload_key(hashes[-1], 0)
        self.tracker.record_store(request, group, 0, key)
        return key

    def hear(self, *chain: ChainEvent) -> None:
        for event in self.tracker.take_events(list(offloading_events(chain))):
            where = self.blocks.setdefault((event.medium, event.ownership), set())
            if type(event).__name__ == "BlockStored":
                where.update(event.block_hashes)
            else:
                assert where.issuperset(event.block_hashes), "it was told of no such block"
                where.difference_update(event.block_hashes)


STORED = {"pinned": ("CPU", None), "nvme": ("STORAGE", "nvme"), "nvme1": ("STORAGE", "nvme1")}


@pytest.mark.parametrize(
    "leaving",
    [("pinned", "nvme", "nvme1"), ("nvme1", "pinned", "nvme"), ("nvme", "nvme1", "pinned")],
    ids=" ".join,
)
def test_every_block_of_a_chunk_leaves_each_tier_that_it_entered(leaving: tuple[str, ...]) -> None:
    router = Router()
    key = router.describe(1)
    for tier in STORED:
        router.hear(ChainEvent(tier, (key,), None))
    assert {where: len(blocks) for where, blocks in router.blocks.items()} == dict.fromkeys(
        STORED.values(), BLOCKS
    )
    for number, tier in enumerate(leaving):
        router.hear(ChainEvent(tier, (key,), RemoveReason.EVICTED))
        assert not router.blocks[STORED[tier]]
        for other in leaving[number + 1 :]:
            assert len(router.blocks[STORED[other]]) == BLOCKS, "it still lies there"
    assert not router.tracker._pending_event_metadata


def test_a_chunk_that_comes_back_from_below_is_described_as_before() -> None:
    router = Router()
    key = router.describe(1)
    router.hear(ChainEvent("pinned", (key,), None), ChainEvent("nvme", (key,), None))
    router.hear(ChainEvent("pinned", (key,), RemoveReason.EVICTED))
    router.hear(ChainEvent("pinned", (key,), None))
    assert len(router.blocks["CPU", None]) == BLOCKS


@pytest.fixture
def rig() -> Iterator[Rig]:
    for rig in rigged(2):
        rig.events = rig.chain._events = rig.chain._placement.tally._events = ServerEvents()
        yield rig


def failed(rig: Rig) -> list[bytes]:
    assert isinstance(rig.events, ServerEvents)
    return rig.events.take_failed()


def test_a_promotion_or_a_store_that_fails_is_kept_for_vllm(rig: Rig) -> None:
    rig.lower.chunks.update({key: pattern(key, 64) for key in (b"x", b"y")})
    rig.lower.broken.add(b"x")
    slots, _ = rig.fetch([b"x", b"y"]).result(5)
    rig.chain.release(slots)
    assert failed(rig) == [b"x"]
    rig.chain.abandon(rig.chain.reserve(rig.chain.new_prompt(), [b"a"]).slots)
    assert failed(rig) == [b"a"]
    assert failed(rig) == []


def test_what_is_there_or_was_invalidated_has_not_failed(rig: Rig) -> None:
    rig.put([b"a"])
    slots = rig.chain.reserve(rig.chain.new_prompt(), [b"b"]).slots
    rig.chain.invalidate()
    rig.chain.abandon(slots)
    assert failed(rig) == []


def test_only_who_has_not_tried_again_is_told_as_failed(rig: Rig) -> None:
    rig.chain.abandon(rig.chain.reserve(rig.chain.new_prompt(), [b"a", b"b"]).slots)
    again = rig.chain.reserve(rig.chain.new_prompt(), [b"b"]).slots
    assert rig.chain.without_slot(failed(rig)) == [b"a"]
    rig.chain.abandon(again)


@pytest.mark.skipif(not events.TELLS_FAILURES, reason="this vLLM does not want to know")
def test_vllm_forgets_the_blocks_of_a_chunk_that_never_came() -> None:
    router = Router()
    key = router.describe(1)
    assert list(router.tracker.take_events([failure_event([key])])) == []
    assert not router.tracker._pending_event_metadata


def test_an_event_says_only_what_this_release_has_fields_for() -> None:
    fields = base.OffloadingEvent.__dataclass_fields__
    event = failure_event([b"key-----"])
    assert (event.keys, event.removed) == ([b"key-----"], True)
    assert hasattr(event, "metadata_only") == ("metadata_only" in fields)
    (own, foreign) = offloading_events(
        [ChainEvent("nvme", (b"k" * 8,), None), ChainEvent("tape", (b"k" * 8,), None)], {"tape"}
    )
    assert own.locality is base.Locality.LOCAL
    assert foreign.locality is None, "where another package keeps chunks is unknown"


def test_a_log_that_nobody_wants_failures_of_keeps_none() -> None:
    log = EventLog()
    log.failed([b"a"])
    assert log.take() == []
