"""What vLLM expects of its own manager of CPU memory, of kvtier's manager through the same interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from standin_servers import BLOCK_BYTES, BLOCK_TOKENS, offloading_config
from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext, make_offload_key

from kvtier.factory.vllm import CompositeOffloadingSpec

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]


class Scheduler:
    """vLLM's scheduler, as far as it talks to a manager; no worker copies anything."""

    def __init__(self, model: Path, *, chunks: int, policy: str) -> None:
        tiers = [{"type": "gpu"}, {"type": "pinned", "capacity": chunks * BLOCK_BYTES, "policy": policy}]
        config = offloading_config({"kvtier": {"version": 1, "tiers": tiers}}, model)
        self.manager = CompositeOffloadingSpec(config).get_manager()
        self._contexts: dict[str, ReqContext] = {}

    def request(self, name: str, keys: Sequence[OffloadKey]) -> ReqContext:
        """A request whose prompt has these chunks; vLLM notes where each ends before it asks or stores."""
        context = self._contexts[name] = ReqContext(req_id=name)
        for number, key in enumerate(keys, start=1):
            context.set_offload_key_position(key, number * BLOCK_TOKENS)
        self.manager.on_new_request(context)
        return context

    def offer(self, name: str, keys: Sequence[OffloadKey]) -> Any:
        return self.manager.prepare_store(keys, self._contexts[name])

    def complete(self, name: str, keys: Sequence[OffloadKey], *, success: bool = True) -> None:
        self.manager.complete_store(set(keys), self._contexts[name], success)

    def store(self, name: str, keys: Sequence[OffloadKey]) -> list[OffloadKey]:
        """Store all of the keys that are new; returns what left for them."""
        output = self.offer(name, keys)
        assert output is not None
        self.complete(name, output.keys_to_store)
        return list(output.evicted_keys)

    def finish(self, name: str) -> None:
        self.manager.on_request_finished(self._contexts[name])

    def hits(self, keys: Sequence[OffloadKey]) -> int:
        """How many leading chunks hit."""
        context = ReqContext(req_id="asks")
        results = [self.manager.lookup(key, context) for key in keys]
        self.manager.on_request_finished(context)
        return next((n for n, result in enumerate(results) if result is not LookupResult.HIT), len(keys))


Start = Callable[..., Scheduler]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "config.json").write_text("{}")
    started: list[Scheduler] = []

    def begin(*, chunks: int, policy: str = "lru") -> Scheduler:
        started.append(Scheduler(tmp_path, chunks=chunks, policy=policy))
        return started[-1]

    yield begin
    for scheduler in started:
        scheduler.manager._side.chain.check()
        scheduler.manager.shutdown()


def prompt(name: int, count: int) -> list[OffloadKey]:
    return [make_offload_key(bytes([name, number]) * 8, 0) for number in range(count)]


@pytest.fixture(params=["lru", "arc", "s3fifo", "reuse"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_unfinished_requests_are_as_old_as_their_slots_and_not_as_their_copies(start: Start) -> None:
    scheduler = start(chunks=4)
    first, second, third = prompt(1, 2), prompt(2, 2), prompt(3, 2)
    for name, keys in (("a", first), ("b", second)):
        scheduler.request(name, keys)
        assert scheduler.offer(name, keys).keys_to_store == keys
    scheduler.complete("b", second)
    scheduler.complete("a", first)
    scheduler.request("c", third)
    assert scheduler.store("c", third) == first[::-1], "the tail goes before the head"


def test_a_request_that_ends_makes_all_it_used_young_again(start: Start) -> None:
    scheduler = start(chunks=6)
    long, short, third = prompt(1, 4), prompt(2, 2), prompt(3, 1)
    scheduler.request("long", long)
    scheduler.store("long", long)
    scheduler.request("short", short)
    scheduler.store("short", short)
    scheduler.finish("short")
    scheduler.finish("long")
    scheduler.request("c", third)
    assert scheduler.store("c", third) == [short[1]]


def test_chunks_keep_their_places_though_they_come_out_of_order(start: Start, policy: str) -> None:
    scheduler = start(chunks=4, policy=policy)
    keys, other = prompt(1, 4), prompt(2, 2)
    scheduler.request("a", keys)
    for key in (keys[3], keys[0], keys[2], keys[1]):  # as where a window of layers is filled in later
        scheduler.store("a", [key])
    scheduler.finish("a")
    scheduler.request("b", other)
    assert scheduler.store("b", other) == [keys[3], keys[2]]
    assert scheduler.hits(keys) == 2


def test_a_chunk_that_a_store_names_stays_though_it_is_the_oldest(start: Start, policy: str) -> None:
    scheduler = start(chunks=6, policy=policy)
    old, other = prompt(1, 3), prompt(2, 3)
    for name, keys in (("a", old), ("b", other)):
        scheduler.request(name, keys)
        scheduler.store(name, keys)
        scheduler.finish(name)
    longer = [*old, *prompt(3, 2)]
    scheduler.request("c", longer)
    assert set(scheduler.store("c", longer)) <= set(other)
    assert scheduler.hits(longer) == len(longer)


def test_a_store_that_is_refused_changes_nothing_and_is_taken_later(start: Start, policy: str) -> None:
    scheduler = start(chunks=4, policy=policy)
    first, second = prompt(1, 3), prompt(2, 3)
    scheduler.request("a", first)
    scheduler.offer("a", first)  # its copies are under way
    scheduler.request("b", second)
    assert [scheduler.offer("b", second) for _ in range(3)] == [None] * 3
    scheduler.complete("a", first)
    assert scheduler.hits(first) == len(first)
    scheduler.finish("a")
    assert scheduler.store("b", second) == first[:0:-1]
    assert (scheduler.hits(first), scheduler.hits(second)) == (1, 3)


def test_a_prompt_that_is_stored_again_after_a_failure_is_in_order(start: Start, policy: str) -> None:
    scheduler = start(chunks=4, policy=policy)
    keys, other = prompt(1, 4), prompt(2, 2)
    scheduler.request("a", keys)
    scheduler.store("a", keys[:1])
    scheduler.offer("a", keys[1:3])
    scheduler.complete("a", keys[1:3], success=False)
    assert scheduler.offer("a", keys[3:]).keys_to_store == [], "it could not be reached"
    scheduler.finish("a")
    assert scheduler.hits(keys) == 1
    scheduler.request("b", keys)
    assert scheduler.store("b", keys) == []
    scheduler.finish("b")
    scheduler.request("c", other)
    assert scheduler.store("c", other) == [keys[3], keys[2]]


def test_slots_are_in_the_order_of_the_keys(start: Start) -> None:
    scheduler = start(chunks=4)
    keys = prompt(1, 3)
    context = scheduler.request("a", keys)
    output = scheduler.offer("a", keys)
    slot_of = dict(zip(output.keys_to_store, output.store_spec.slots.tolist(), strict=True))
    scheduler.complete("a", keys)
    for order in (keys, keys[::-1], [keys[1], keys[2], keys[0]]):
        spec = scheduler.manager.prepare_load(order, context)
        assert spec.slots.tolist() == [slot_of[key] for key in order]
        scheduler.manager.complete_load(set(order), context)


def test_the_facts_of_a_tier_have_the_labels_that_the_spec_declares(start: Start) -> None:
    (pinned,) = start(chunks=4).manager.config_info()
    assert tuple(pinned) == CompositeOffloadingSpec.config_info_keys({})
    assert (pinned["tier"], pinned["capacity_tokens"]) == ("pinned", 4 * BLOCK_TOKENS)
