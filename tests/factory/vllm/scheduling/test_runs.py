"""A run of a prompt that lies below is looked up in a few calls, and yet as if chunk by chunk."""

import time
from collections.abc import Iterator, Sequence

import pytest
from chain_rig import SLOT_BYTES, rigged
from placement_rig import CHUNK_TOKENS, Server, Slow

from kvtier.engine.movement import worth
from kvtier.engine.movement.placement import Presence


@pytest.fixture
def large() -> Iterator[Server]:
    for rig in rigged(128):
        yield Server(rig)


class Asks:
    """A request that looks up its prompt as the server does: until a miss, telling all ends of chunks."""

    def __init__(self, server: Server, keys: list[bytes]) -> None:
        self.server = server
        self.keys = keys
        self.calls: list[tuple[bytes, ...]] = []  # into the tier below
        lookup = server.rig.lower.lookup

        def counted(keys: Sequence[bytes]) -> Sequence[bool | None]:
            self.calls.append(tuple(keys))
            return lookup(keys)

        server.rig.lower.lookup = counted  # type: ignore[method-assign]

    def hits(self, request: str, count: int | None = None) -> int:
        """How many chunks are there or to come, of the first `count`."""
        ends = {key: number * CHUNK_TOKENS for number, key in enumerate(self.keys, start=1)}
        for hits, key in enumerate(self.keys[:count]):
            found = self.server.placement.lookup(request, key, told=ends[key], ends=ends)
            if found not in (Presence.READY, Presence.PENDING):
                return hits
        return len(self.keys[:count])

    def loads(self) -> list[bytes]:
        """What was promoted, once all of it is there."""
        self.server.placement.scheduled()
        self.server.pins()
        return [key for call, keys in self.server.rig.lower.log if call == "load" for key in keys]


def prompt_of(count: int, group: bytes = b"") -> list[bytes]:
    return [b"%03d" % number + group for number in range(count)]


def test_a_run_below_is_asked_for_a_few_times_however_long_it_is(large: Server) -> None:
    keys = prompt_of(100)
    large.only_below(keys)
    asks = Asks(large, keys)
    assert asks.hits("r1") == 100
    assert len(asks.calls) <= 10
    assert asks.loads() == keys
    large.settle(keys)
    assert large.placement.prepare_load("r1", keys)
    large.placement.complete_load("r1", set(keys))
    large.placement.finish("r1")
    assert large.pins() == 0


def test_a_miss_is_asked_for_alone_and_ends_a_run(large: Server) -> None:
    keys = prompt_of(20)
    large.only_below([key for key in keys if key != keys[5]])
    asks = Asks(large, keys)
    assert asks.hits("r1") == 5
    assert asks.loads() == keys[:5]
    asks.calls.clear()
    assert Asks(large, prompt_of(3, b"absent")).hits("r2") == 0
    assert [len(call) for call in asks.calls] == [1]


def test_what_lies_in_slots_within_a_run_is_not_loaded_again(large: Server) -> None:
    keys = prompt_of(12)
    large.store(keys[3:6])
    large.only_below(keys)
    asks = Asks(large, keys)
    assert asks.hits("r1") == 12
    assert asks.loads() == [*keys[:3], *keys[6:]]


def test_what_is_found_ahead_and_never_asked_for_is_let_go(large: Server) -> None:
    keys = prompt_of(12)
    large.only_below(keys)
    asks = Asks(large, keys)
    assert asks.hits("r1", count=4) == 4
    asks.loads()
    assert large.placement.prepare_load("r1", keys[:4])
    large.placement.complete_load("r1", set(keys[:4]))
    assert large.pins() == 0
    assert asks.hits("r2", count=4) == 4
    large.placement.forget("r2")
    assert large.pins() == 0


def test_a_prompt_that_is_asked_for_from_its_end_is_gone_through_once(large: Server) -> None:
    class Ends(dict[bytes, int]):
        begun = 0

        def __iter__(self) -> Iterator[bytes]:
            Ends.begun += 1
            return super().__iter__()

    keys = prompt_of(50)
    large.only_below(keys)
    ends = Ends({key: number * CHUNK_TOKENS for number, key in enumerate(keys, start=1)})
    for key in reversed(keys):
        assert large.placement.lookup("r1", key, told=ends[key], ends=ends) is Presence.PENDING
    assert Ends.begun == 1
    large.placement.forget("r1")


def test_a_run_ends_with_its_group_of_layers(large: Server) -> None:
    large.placement._group_of = lambda key: key[3:]
    keys = [*prompt_of(3, b"a"), *prompt_of(3, b"b")]
    large.only_below(keys)
    asks = Asks(large, keys)
    assert asks.hits("r1", count=1) == 1
    assert asks.loads() == keys[:3]


def test_a_run_that_finds_half_of_its_slots_is_a_run_of_that_half() -> None:
    for rig in rigged(6):
        server = Server(rig)
        keys = prompt_of(12)
        server.only_below(keys)
        asks = Asks(server, keys)
        assert asks.hits("r1") == 6
        assert asks.loads() == keys[:6]
        assert rig.chain.stats().tiers["pinned"].counters["slotless"] == 1
        server.placement.forget("r1")


def test_of_a_run_on_trial_no_more_than_the_trial_is_loaded(
    large: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worth, "PROBE_BYTES", 3 * SLOT_BYTES)
    slow, keys = Slow(large, chunk_s=2.0), prompt_of(12)
    slow.rate.measured_s = time.monotonic() - 2 * worth.PROBE_EVERY_S
    large.only_below(keys)
    asks = Asks(large, keys)
    assert asks.hits("r1") == 3
    assert asks.loads() == keys[:3]
    large.placement.forget("r1")
