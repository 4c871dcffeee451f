"""A server's notice board."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest

pytest.importorskip("vllm")  # a chain with a drive asks it for its hashes

from kvtier.engine.live import publisher, reader
from kvtier.factory.composite import CompositeSpec
from kvtier.factory.vllm.server import Geometry, SchedulerSide

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]

KIB = 1024


def test_a_server_tells_its_numbers_until_it_shuts_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_memory, store = tmp_path / "shm", tmp_path / "nvme"
    shared_memory.mkdir()
    written, look = threading.Event(), publisher.Publisher.look

    def looks(one: publisher.Publisher) -> bool:
        went_on = look(one)
        written.set()
        return went_on

    monkeypatch.setattr(publisher, "SHARED_MEMORY", shared_memory)
    monkeypatch.setattr(publisher.Publisher, "look", looks)
    monkeypatch.delenv("KVTIER_LIVE")
    tiers = [
        {"type": "gpu"},
        {"type": "pinned", "capacity": 64 * KIB},
        {"type": "nvme", "path": str(store), "capacity": "64MiB", "reserve": 0},
    ]
    spec = CompositeSpec.from_config({"version": 1, "tiers": tiers})
    server = f"test-{uuid.uuid4()}"
    geometry = Geometry(server=server, part_bytes=8 * KIB, ranks=1, parts=1, chunk_tokens=16.0)
    side = SchedulerSide(spec, geometry, lambda _: {"model": "m"}, group_tokens={b"": 16})
    assert written.wait(20)
    (board,) = reader.boards_of(store, shared_memory)
    assert (board.facts.kind, board.facts.model, board.facts.chunk_tokens) == ("vllm", "m", 16.0)
    assert board.facts.namespace == side.tiers[0].namespace
    side.close()
    assert list(shared_memory.iterdir()) == []
