"""What two looks at an engine's notice board say together: what it holds now, and how fast it moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....engine.live.board import Board
from ....engine.live.reader import is_stale
from .shapes import EngineNow, TierNow

BREAKER_STATES = ("closed", "trial", "open")


class Looks:
    """Looks at boards, one after the other; rates are of the last two different boards of an engine."""

    def __init__(self) -> None:
        # Mutable state, by process and when it started:
        self._seen: dict[tuple[int, float], tuple[Board | None, Board]] = {}

    def add(self, boards: Sequence[Board], now_unix_s: float) -> tuple[EngineNow, ...]:
        """The engines of a look."""
        self._seen = {(board.pid, board.started_unix_s): self._pair(board) for board in boards}
        return tuple(_engine(before, now, now_unix_s) for before, now in self._seen.values())

    def _pair(self, board: Board) -> tuple[Board | None, Board]:
        before, last = self._seen.get((board.pid, board.started_unix_s), (None, None))
        return (before if last is None or last.now_unix_s == board.now_unix_s else last), board


def _engine(before: Board | None, now: Board, now_unix_s: float) -> EngineNow:
    facts = now.facts
    tiers = _tiers(now)
    saved_tokens = None
    if facts.chunk_tokens is not None:
        saved_tokens = round(sum(_count(tier, "hits") for tier in tiers.values()) * facts.chunk_tokens)
    rates = [tier["gauges"].get("prefill_tokens_per_s", 0) for tier in tiers.values()]
    rate = max(rates, default=0)
    return EngineNow(
        pid=now.pid,
        kind=facts.kind,
        model=facts.model,
        namespace=facts.namespace,
        up_s=max(0.0, now.now_unix_s - now.started_unix_s),
        stale=is_stale(now, now_unix_s),
        saved_tokens=saved_tokens,
        saved_s=saved_tokens / rate if saved_tokens is not None and rate > 0 else None,
        tiers=tuple(_tier(name, before, now) for name in tiers),
    )


def _tier(name: str, before: Board | None, now: Board) -> TierNow:
    tier, rates = _tiers(now)[name], _Rates(before, now)
    cap = now.facts.caps.get(name, {})
    breaker = tier["gauges"].get("breaker_state")
    return TierNow(
        tier=name,
        hits=_count(tier, "hits"),
        hit_percent=_percent(_count(tier, "hits"), _lookups(now)),
        hit_percent_now=rates.hit_percent(name),
        load_bytes_per_s=rates.per_s(name, "loaded_bytes"),
        store_bytes_per_s=rates.per_s(name, "stored_bytes"),
        evicted_per_s=rates.per_s(name, "evicted_chunks"),
        queue_chunks=now.stats["pending_chunks"].get(name, 0),
        used_bytes=tier["used_bytes"],
        cap_bytes=int(cap.get("cap_bytes", tier["capacity_bytes"])),
        bound_by=str(cap.get("bound_by", "capacity")),
        breaker="" if breaker is None else BREAKER_STATES[int(breaker)],
        late_loads=_count(tier, "late_loads"),
        dropped_chunks=_count(tier, "dropped_chunks"),
        corrupt_chunks=_count(tier, "corrupt_chunks"),
    )


class _Rates:
    """Differences of two boards, by their own clocks."""

    def __init__(self, before: Board | None, now: Board) -> None:
        self._before, self._now = before, now
        self._took_s = 0.0 if before is None else now.now_unix_s - before.now_unix_s

    def per_s(self, tier: str, counter: str) -> float | None:
        added = self._added(tier, counter)
        return None if added is None else added / self._took_s

    def hit_percent(self, tier: str) -> float | None:
        hits = self._added(tier, "hits")
        if hits is None or self._before is None:
            return None
        return _percent(hits, _lookups(self._now) - _lookups(self._before))

    def _added(self, tier: str, counter: str) -> int | None:
        """What was added to a counter; None where nobody can say: no time went by, or the clock was set."""
        if self._before is None or self._took_s <= 0:
            return None
        added = _count(_tiers(self._now)[tier], counter) - _count(_tiers(self._before)[tier], counter)
        return added if added >= 0 else None


def _tiers(board: Board) -> Mapping[str, Any]:
    tiers: Mapping[str, Any] = board.stats["tiers"]
    return tiers


def _count(tier: Mapping[str, Any], counter: str) -> int:
    return int(tier["counters"].get(counter, 0))


def _lookups(board: Board) -> int:
    return sum(_count(tier, "hits") + _count(tier, "misses") for tier in _tiers(board).values())


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole > 0 else None
