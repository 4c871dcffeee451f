"""Every adapter against a stand-in of the interface that it is for: no release of vLLM is needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import standin_servers as servers
import vllm_standins as standins
from standin_servers import StandinServer, Stored
from vllm_server import SPEC_MODULE, SPEC_NAME, tier_document

import kvtier.factory
from kvtier.engine.movement import rates
from kvtier.tiers.errors import ConfigError

SLOT_BYTES = servers.BLOCK_BYTES

Install = Callable[[standins.Modules], Any]
Start = Callable[..., StandinServer]

GENERATIONS: dict[str, tuple[standins.Standins, type[StandinServer]]] = {
    "b": (standins.generation_b, servers.ServerB),
    "c": (standins.generation_c, servers.ServerC),
    "e of 0.21": (lambda: standins.generation_e(tells_ends=False), servers.ServerOldE),
    "e": (standins.generation_e, servers.ServerE),
    "f": (standins.generation_f, servers.ServerF),
    "g": (standins.generation_g, servers.ServerG),
}
ALL = list(GENERATIONS)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put stand-ins in vLLM's place; returns a function that does it, and returns the plugin's module."""

    def replace(modules: standins.Modules) -> Any:
        for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
            monkeypatch.delitem(sys.modules, name)
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{SPEC_MODULE}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(kvtier.factory, "vllm", None, raising=False)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return import_module(SPEC_MODULE)

    yield replace
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{SPEC_MODULE}.")]:
        del sys.modules[name]  # what was made over the stand-ins; the fixture brings back what was there


@pytest.fixture
def start(install: Install, tmp_path: Path) -> Iterator[Start]:
    """Start a server of a generation, with four slots over an NVMe tier."""
    started: list[StandinServer] = []
    (tmp_path / "model").mkdir()

    def begin(generation: str, top: Mapping[str, Any] | None = None, **extra: Any) -> StandinServer:
        modules, server = GENERATIONS[generation]
        document = tier_document(pinned=4 * SLOT_BYTES, nvme=tmp_path / "nvme", nvme_capacity="64MiB")
        document |= top or {}
        spec = getattr(install(modules()), SPEC_NAME)
        started.append(server(spec, {"kvtier": document, **extra}, tmp_path / "model"))
        return started[-1]

    yield begin
    for server in started:
        server.close()


def _ready(server: StandinServer, request: str, keys: list[bytes]) -> int:
    """Ask until there is an answer, as a scheduler does in each step."""
    while (hits := server.lookup(request, keys)) is None:
        pass
    return hits


@pytest.mark.parametrize("generation", ALL)
def test_the_adapter_is_the_one_of_its_generation_and_of_vllms_own_class(
    start: Start, generation: str
) -> None:
    spec = start(generation).spec
    assert type(spec).__module__ == f"{SPEC_MODULE}.generations.{generation[0]}"
    home = "spec" if generation in "bc" else "base"
    assert isinstance(spec, import_module(f"{standins.OFFLOAD}.{home}").OffloadingSpec)


@pytest.mark.parametrize("generation", ALL)
def test_one_trace_has_the_same_effect_in_every_generation(start: Start, generation: str) -> None:
    server = start(generation)
    for block in range(8):
        server.write(block, float(block))
    keys = [b"k%d" % number for number in range(6)]

    assert server.lookup("r1", keys[:3]) == 0
    assert server.store("r1", keys[:3], [1, 2, 3]) == Stored(keys[:3], [0, 1, 2], [])
    server.finish("r1")
    server.drain()  # half of the slots may be dirty, so the next store goes down only after this one

    assert server.lookup("r2", keys[:4]) == 3
    assert server.load("r2", keys[:3], [9, 10, 11]) == [0, 1, 2]
    assert [server.holds(9 + i, 1.0 + i) for i in range(3)] == [True] * 3
    assert server.store("r2", keys[2:4], [3, 4]) == Stored([keys[3]], [3], [])
    server.finish("r2")

    server.drain()
    third = server.store("r3", keys[4:6], [5, 6])
    assert (third.keys, len(third.evicted)) == (keys[4:6], 2)
    gone = third.evicted[0]
    server.drain()
    assert server.lookup("r4", [gone]) is None
    assert _ready(server, "r4", [gone]) == 1
    server.load("r4", [gone], [12])
    assert server.holds(12, 1.0 + keys.index(gone))
    server.finish("r4")
    assert server.pinned_slots() == 0


def _of_prompt(name: bytes, count: int) -> list[bytes]:
    """Keys as vLLM makes them: they end with the group of layers."""
    return [b"%s%d" % (name, number) + bytes(4) for number in range(count)]


def _computed(server: StandinServer, numbers: range) -> None:
    """Compute prompts of four chunks in one step each, and decode in the step that follows."""
    for number in numbers:
        request, keys = f"computed {number}", _of_prompt(b"c%d " % number, 4)
        assert server.lookup(request, keys) == 0
        server.store(request, keys, [1, 2, 3, 4])
        server.end_step()
        server.end_step()
        server.finish(request)
        server.drain()


@pytest.mark.parametrize("generation", ALL)
def test_what_a_server_computes_sooner_than_a_drive_loads_it_is_computed(
    start: Start, generation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "STEP_TOKENS_MIN", 4 * servers.BLOCK_TOKENS)
    server = start(generation, {"recompute": "auto"})
    chain = server.manager._side.chain
    _computed(server, range(rates.RUNS_MIN - 1))
    assert "prefill_tokens_per_s" not in chain.stats().tiers["pinned"].gauges
    _computed(server, range(rates.RUNS_MIN - 1, rates.RUNS_MIN))
    assert chain.stats().tiers["pinned"].gauges["prefill_tokens_per_s"] > 0

    rate = chain._lower.rates["nvme"]
    rate.began(0.0)
    rate.ended(time.monotonic() + 3600.0, rates.KNOWN_FROM_BYTES)  # an hour for it, and it ended just now
    below, above = _of_prompt(b"c0 ", 4), _of_prompt(b"c%d " % (rates.RUNS_MIN - 1), 4)
    assert server.lookup("r1", below) == 0
    assert server.lookup("r1", below) == 0
    assert chain.stats().tiers["nvme"].counters["declined_chunks"] == 1
    assert server.lookup("r2", above) == 4, "what is in slots is loaded"
    server.finish("r1"), server.finish("r2")
    assert chain.stats().tiers["nvme"].counters["loaded_chunks"] == 0


@pytest.mark.parametrize("generation", ["b", "g"])
def test_a_document_may_want_everything_loaded(
    start: Start, generation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "STEP_TOKENS_MIN", 4 * servers.BLOCK_TOKENS)
    server = start(generation, {"recompute": "never"})
    _computed(server, range(rates.RUNS_MIN))
    rate = server.manager._side.chain._lower.rates["nvme"]
    rate.began(0.0)
    rate.ended(time.monotonic() + 3600.0, rates.KNOWN_FROM_BYTES)
    assert _ready(server, "r1", _of_prompt(b"c0 ", 4)) == 4
    server.finish("r1")


@pytest.mark.parametrize("generation", ALL)
def test_a_prompt_that_is_stored_chunk_by_chunk_loses_its_tail_first(start: Start, generation: str) -> None:
    server = start(generation)
    first, second = _of_prompt(b"a", 3), _of_prompt(b"b", 3)
    evicted = []
    for request, keys in (("r1", first), ("r2", second)):
        assert server.lookup(request, keys) == 0
        for key in keys:
            evicted += server.store(request, [key], [1]).evicted
            server.drain()
        server.finish(request)
    assert evicted == [first[2], first[1]]


@pytest.mark.parametrize("generation", ALL)
def test_a_store_without_room_is_offered_again_and_then_taken_whole(start: Start, generation: str) -> None:
    server = start(generation)
    first, second = _of_prompt(b"a", 3), _of_prompt(b"b", 2)
    assert server.lookup("r3", second) == 0
    server.store("r1", first, [1, 2, 3])
    server.finish("r1")
    server.drain()
    assert server.lookup("r2", first) == 3
    assert [server.is_refused("r3", second) for _ in range(3)] == [True] * 3
    server.load("r2", first, [4, 5, 6])
    assert server.store("r3", second, [7, 8]).keys == second
    assert server.manager._side.chain.stats().tiers["pinned"].counters["dropped_chunks"] == 0


@pytest.mark.parametrize("generation", ALL)
def test_a_request_that_goes_away_leaves_no_pin(
    start: Start, generation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(generation)
    server.store("r1", [b"a"], [1])
    server.finish("r1")
    assert server.lookup("r2", [b"a", b"b"]) == 1
    assert server.pinned_slots() == 1
    server.finish("r2")
    leases = getattr(server.manager, "_leases", None)
    if leases is not None:  # nobody says that it has ended: what was not asked for in a while is let go
        monkeypatch.setattr(leases, "_clock", lambda: float("inf"))
        assert server.lookup("r3", [b"c"]) == 0
    assert server.pinned_slots() == 0


@pytest.mark.parametrize("generation", ["e", "f", "g"])
def test_a_request_that_runs_without_what_it_found_lets_go_of_it(start: Start, generation: str) -> None:
    server = start(generation)
    server.store("r1", [b"a"], [1])
    assert server.lookup("r2", [b"a"]) == 1
    assert server.pinned_slots() == 1
    server.store("r2", [b"a"], [2])  # it has computed the chunk itself
    assert server.pinned_slots() == 0


@pytest.mark.parametrize("generation", ["f", "g"])
def test_a_request_that_is_scheduled_lets_go_of_what_it_does_not_load(start: Start, generation: str) -> None:
    server = start(generation)
    server.store("r1", [b"a"], [1])
    assert server.lookup("r2", [b"a"]) == 1
    server.manager.on_schedule_end(standins.ScheduleEndContext([], []))
    assert server.pinned_slots() == 1, "it waits"
    server.manager.on_schedule_end(standins.ScheduleEndContext(["r2"], []))
    assert server.pinned_slots() == 0


def test_a_server_that_cannot_wait_is_told_of_a_miss_and_finds_the_chunk_later(
    install: Install, tmp_path: Path
) -> None:
    document = tier_document(pinned=SLOT_BYTES, nvme=tmp_path / "nvme", nvme_capacity="64MiB")
    spec = getattr(install(standins.generation_b(can_wait=False)), SPEC_NAME)
    (tmp_path / "model").mkdir()
    server = servers.ServerB(spec, {"kvtier": document}, tmp_path / "model")
    try:
        server.store("r1", [b"a"], [1])
        server.drain()
        server.store("r1", [b"b"], [2])
        server.drain()
        assert server.lookup("r2", [b"a"]) == 0
        while not server.lookup("r2", [b"a"]):
            pass
        server.load("r2", [b"a"], [3])
        assert server.pinned_slots() == 0
    finally:
        server.close()


def test_a_store_that_vllm_completes_before_it_is_written_is_not_readable(start: Start) -> None:
    server = start("b")
    assert isinstance(server, servers.ServerB)
    server.write(1, 1.0)
    output = server.manager.prepare_store([b"a"])
    server.manager.complete_store({b"a"})  # as after a preemption
    server.end_step()
    assert server.lookup("r1", [b"a"]) is None
    server.transfer(standins.PlainDeviceSpec([1]), output.store_spec)
    server.end_step()
    assert server.lookup("r1", [b"a"]) == 1
    server.load("r1", [b"a"], [2])
    assert server.holds(2, 1.0)


def test_a_load_may_begin_amid_a_chunk(start: Start) -> None:
    server = start("b", block_size=2 * servers.BLOCK_TOKENS)
    assert isinstance(server, servers.ServerB)
    for block in range(5):
        server.write(block, float(block))
    output = server.manager.prepare_store([b"a", b"b"])
    server.transfer(standins.PlainDeviceSpec([1, 2, 3, 4]), output.store_spec)
    server.end_step()
    assert server.lookup("r1", [b"a", b"b"]) == 2
    server.load("r1", [b"a", b"b"], [9, 10, 11])  # the first block is on the device already
    assert [server.holds(9 + i, 2.0 + i) for i in range(3)] == [True] * 3


def test_two_loads_of_one_prompt_may_be_under_way(start: Start) -> None:
    server = start("b")
    server.store("r1", [b"a", b"b"], [1, 2])
    for _ in range(2):
        assert server.lookup("r2", [b"a", b"b"]) == 2
        server.manager.prepare_load([b"a", b"b"])
    for _ in range(2):
        server.manager.complete_load({b"b", b"a"})
    assert server.pinned_slots() == 0


@pytest.mark.parametrize(
    ("specs", "what"),
    [
        ([standins.MambaSpec(16)], "MambaSpec"),
        ([standins.FullAttentionSpec(16)] * 2, "2 groups"),
        ([standins.UniformTypeKVCacheSpecs(16, {"layer": standins.MambaSpec(16)})], "MambaSpec"),
    ],
)
def test_what_the_oldest_interface_says_too_little_about_is_refused_by_name(
    install: Install, tmp_path: Path, specs: list[Any], what: str
) -> None:
    spec = getattr(install(standins.generation_b()), SPEC_NAME)
    with pytest.raises(ConfigError, match=what):
        spec(servers.vllm_config({}, tmp_path), servers.kv_cache_config(*specs))
    with pytest.raises(ConfigError, match="needs a KV-cache config"):
        spec(servers.vllm_config({}, tmp_path), None)
    with pytest.raises(ConfigError, match="decode_context"):
        spec(servers.vllm_config({}, tmp_path, decode_context=2), servers.kv_cache_config())


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("none", "no offloading interface"),
        ("0.13", "interface of 0.13"),
        ("0.20", "interface of 0.20"),
    ],
)
def test_an_unsupported_vllm_is_one_error_that_says_what_was_found(
    install: Install, kind: str, found: str
) -> None:
    plugin = install(standins.unsupported(kind))
    with pytest.raises(ConfigError, match=f"{found}.*supports vLLM 0.14"):
        getattr(plugin, SPEC_NAME)


def test_vllm_is_told_where_only_the_first_rank_need_store(install: Install, tmp_path: Path) -> None:
    spec = getattr(install(standins.generation_g()), SPEC_NAME)
    for is_replicated in (True, False):
        config = servers.offloading_config({"kvtier": tier_document(pinned="1MiB")}, tmp_path)
        config.replicated_layout = is_replicated
        assert spec(config).replicated_layout is is_replicated


def test_an_error_inside_vllm_is_not_taken_for_a_missing_interface(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = install({})
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("import a_module_that_is_nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_nowhere"):
        getattr(plugin, SPEC_NAME)


@pytest.mark.parametrize("has_disk", [True, False])
def test_random_block_hashes_are_said_at_start_where_there_is_a_disk(
    start: Start, has_disk: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    start("b", **({} if has_disk else {"kvtier": tier_document(pinned=4 * SLOT_BYTES)}))
    assert ("PYTHONHASHSEED" in caplog.text) is has_disk


@pytest.mark.parametrize("generation", ALL)
def test_prompts_are_recorded_where_their_end_is_reported_and_else_it_is_said(
    start: Start, generation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trace = tmp_path / "trace.jsonl"
    server = start(generation, {"trace": str(trace)})
    for request, keys in (("r1", [b"a" * 36, b"b" * 32 + bytes(4)]), ("r2", [b"a" * 32 + bytes(4)])):
        server.lookup(request, keys)
        server.store(request, keys, list(range(len(keys))))
        server.end_step()
        server.finish(request)
    server.close()
    lines = trace.read_text().splitlines()[1:]
    reports_ends = generation not in ("b", "c", "e of 0.21")
    assert len(lines) == (2 if reports_ends else 0)
    assert ('"trace" records nothing' in caplog.text) is not reports_ends
