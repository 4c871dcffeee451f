"""Notice boards with numbers in the test's hand."""

from __future__ import annotations

from typing import Any

from kvtier.engine.live.board import Board, Facts

FACTS = Facts(
    "vllm", "org/[bold]m", "0e29043b2ee0", 4096, 16.0, {"nvme": ["/a"]},
    {"nvme": {"cap_bytes": 500, "bound_by": "free space"}},
)  # fmt: skip


def tier(hits: int = 0, misses: int = 0, loaded: int = 0, **more: int) -> dict[str, Any]:
    counters = {"hits": hits, "misses": misses, "loaded_bytes": loaded, "stored_bytes": 0, **more}
    gauges = {"breaker_state": 2}
    return {"used_bytes": 100, "capacity_bytes": 1000, "counters": counters, "gauges": gauges, "parts": {}}


def board(now_unix_s: float = 100.0, pid: int = 7, started_unix_s: float = 50.0, **tiers: Any) -> Board:
    stats = {"tiers": tiers, "pending_chunks": {"nvme": 3}, "pinned_slots": 0}
    return Board(pid, started_unix_s, now_unix_s, FACTS, stats)
