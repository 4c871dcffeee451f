"""A trace replayed through the placement code: what each tier would have done for it, without moving a byte.

The chain is the real one, and the tiers below it decide without keeping anything (`tiers`). Requests
come one after the other, each when all movement of the one before has ended: neither a device nor a drive
takes time here, so nothing is late and nothing is shed for being slow. What is reported is the policy's
work, the best that placement can do at these sizes.

One request, in the order in which a server acts:

    find      one chunk after the other, up to the first that cannot be had, or that is sooner computed than
              loaded, where the speeds of both are given; those below are promoted
    use       what was found
    store     the others, in steps of as many as a server computes at once: every chunk without a slot gets
              one, made free by eviction, and goes down from there; a step without room ends it, so that no
              chunk lies behind a gap
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...tiers import ChunkKey, Tier
from ...tiers.pinned.slots import Slot, SlotTier
from ..chain import ChainStats
from ..library import LibraryChain
from ..loop import LoopThread
from ..movement.placement import Presence
from ..movement.prompts import Prompt
from .first_tokens import FirstTokenFigures, FirstTokens, Speeds
from .trace import Requests

TURN_REQUESTS = 64  # one trip to the loop thread: rare enough not to be felt, often enough for progress

STORES_PER_ARENA = 4  # a store takes a quarter of the slots at most, as the engine's own do

BATCH_BYTES = 1 << 60  # of tiers that move none: the slots are the bound

NEVER_S = 1e9  # the deadline of loads that take no time


@dataclass(frozen=True, slots=True)
class TierFigures:
    """What one tier did.

    Attributes:
        capacity_bytes: what it may take.
        hits_chunks: prompt chunks that it supplied.
        hit_rate_percent: the same, of all prompt chunks.
        promoted_chunks: chunks copied from here into a slot; of the pinned tier none.
        evicted_chunks: chunks that left to make room.
        written_bytes: bytes that came in: stored, promoted into it, or carried over when it made room.
        dropped_chunks: chunks offered to it that found no room.
    """

    tier: str
    capacity_bytes: int
    hits_chunks: int
    hit_rate_percent: float
    promoted_chunks: int
    evicted_chunks: int
    written_bytes: int
    dropped_chunks: int


@dataclass(frozen=True, slots=True)
class ReplayFigures:
    """What all tiers together did for a trace.

    Attributes:
        tiers: in the order of the chain.
        first_tokens: None where no speeds were given.
    """

    requests_count: int
    prompt_chunks: int
    hits_chunks: int
    hit_rate_percent: float
    tiers: tuple[TierFigures, ...]
    first_tokens: FirstTokenFigures | None


def unlimited_hit_percent(requests: Requests) -> float:
    """The hit rate of a cache without a limit: no tiers of any size do better."""
    total_count = sum(map(len, requests))
    return 100 * (total_count - distinct_count(requests)) / total_count


def distinct_count(requests: Requests) -> int:
    """How many different chunks the prompts consist of."""
    return len({key for keys in requests for key in keys})


def replay(
    requests: Requests,
    pinned: SlotTier,
    lower: Sequence[Tier],
    told: Callable[[int], None],
    *,
    step_chunks: int | None,
    speeds: Speeds | None = None,
    chunks_per_key: int = 1,
) -> ReplayFigures:
    """Replay the requests, and tell now and then how many more were served.

    Runs on a loop thread of its own, which has ended when this returns or raises. The same arguments give
    the same figures.

    Args:
        pinned: empty, and used by nobody else, as are the tiers below.
        lower: tiers that answer without waiting, nearest first, each under a name of its own.
        told: called on the caller's thread; what it raises ends the replay.
        step_chunks: how many chunks of a prompt are stored in one step; None for all at once.
        speeds: where they are given, what is sooner computed than loaded from below is not loaded.
        chunks_per_key: how many chunks of a server each key of a prompt stands for; all but `step_chunks` and
            `speeds` is counted in those.
    """
    loop = LoopThread("kvtier-replay")
    chain = LibraryChain(
        pinned,
        lower,
        loop,
        load_deadlines_s={tier.name: NEVER_S for tier in lower},
        batch_bytes=BATCH_BYTES,
        clock=lambda: 0.0,
    )
    first_tokens = None if speeds is None else FirstTokens(speeds, pinned.slot_bytes)
    try:
        for start in range(0, len(requests), TURN_REQUESTS):
            turn = requests[start : start + TURN_REQUESTS]
            loop.submit(_serve_all(chain, pinned.name, turn, step_chunks, first_tokens)).result()
            told(len(turn))
        stats = chain.stats()
        own = {tier.name: tier.stats().counters for tier in lower}
    finally:
        loop.submit(chain.mover.stop()).result()
        loop.close()
    found = None if first_tokens is None else first_tokens.figures()
    return _figures(requests, stats, own, found, chunks_per_key)


async def _serve_all(
    chain: LibraryChain,
    pinned: str,
    requests: Requests,
    step_chunks: int | None,
    first_tokens: FirstTokens | None,
) -> None:
    arena_chunks = max(1, chain.slots_count // STORES_PER_ARENA)
    for keys in requests:
        prompt = chain.new_prompt()
        wanted = keys if first_tokens is None else keys[: _worth_using(chain, pinned, keys, first_tokens)]
        hits = await _use(chain, pinned, prompt, wanted)
        await _store(chain, pinned, prompt, keys[hits:], min(step_chunks or arena_chunks, arena_chunks))


def _worth_using(
    chain: LibraryChain, pinned: str, keys: Sequence[ChunkKey], first_tokens: FirstTokens
) -> int:
    found = chain.contains(keys)
    leading = found[: found.index(None)] if None in found else found
    return first_tokens.hits([tier != pinned for tier in leading], len(keys))


async def _use(chain: LibraryChain, pinned: str, prompt: Prompt, keys: Sequence[ChunkKey]) -> int:
    """Use the leading chunks that some tier has; returns how many."""
    held = _find(chain, prompt, keys)
    if any(source != pinned for _, source in held.values()):
        await chain.wait_filled(list(held))
    used: dict[ChunkKey, str] = {}
    for key, (slot, source) in held.items():
        if chain.state_of(slot) is not Presence.READY:
            break
        chain.count("hits", source, 1)
        used[key] = source
    chain.used(used)
    chain.touch(prompt, list(used))
    chain.release(slot for slot, _ in held.values())
    return len(used)


def _find(chain: LibraryChain, prompt: Prompt, keys: Sequence[ChunkKey]) -> dict[ChunkKey, tuple[Slot, str]]:
    """Pin one chunk after the other, up to the first that cannot be had; says which tier supplies each."""
    held: dict[ChunkKey, tuple[Slot, str]] = {}
    for key in keys:
        _, slot, source = chain.acquire(prompt, [key])[0]
        if slot is None:
            break
        held[key] = slot, source
    return held


async def _store(
    chain: LibraryChain, pinned: str, prompt: Prompt, keys: Sequence[ChunkKey], step_chunks: int
) -> None:
    """Store step by step what has no slot yet, each step when the one before is where it goes."""
    for start in range(0, len(keys), step_chunks):
        part = keys[start : start + step_chunks]
        chain.touch(prompt, part)  # what has a slot behind a miss
        reserved = chain.reserve(prompt, part)
        chain.commit(reserved.slots)
        await chain.mover.drain()
        if reserved.left:
            chain.count("dropped_chunks", pinned, len(reserved.left) + len(keys[start + step_chunks :]))
            return


def _figures(
    requests: Requests,
    stats: ChainStats,
    own: Mapping[str, Mapping[str, int]],
    first_tokens: FirstTokenFigures | None,
    chunks_per_key: int,
) -> ReplayFigures:
    """The figures of each tier; `own` is what those below have counted themselves."""
    prompt_chunks = sum(map(len, requests)) * chunks_per_key
    tiers = tuple(
        _tier_figures(stats, name, own.get(name), prompt_chunks, chunks_per_key) for name in stats.tiers
    )
    hits_chunks = sum(tier.hits_chunks for tier in tiers)
    return ReplayFigures(
        len(requests),
        prompt_chunks,
        hits_chunks,
        _percent(hits_chunks, prompt_chunks),
        tiers,
        first_tokens and first_tokens.times(chunks_per_key),
    )


def _tier_figures(
    stats: ChainStats, name: str, own: Mapping[str, int] | None, prompt_chunks: int, chunks_per_key: int
) -> TierFigures:
    counters = stats.tiers[name].counters
    if own is None:
        # Whatever was loaded from a tier was written into a slot.
        written_bytes = counters["stored_bytes"] + sum(
            tier.counters["loaded_bytes"] for tier in stats.tiers.values()
        )
    else:
        # The chain also counts as stored what was there already.
        written_bytes = own.get("stored_bytes", 0) + own.get("carried_bytes", 0)
    hits_chunks = counters["hits"] * chunks_per_key
    return TierFigures(
        tier=name,
        capacity_bytes=stats.tiers[name].capacity_bytes,
        hits_chunks=hits_chunks,
        hit_rate_percent=_percent(hits_chunks, prompt_chunks),
        promoted_chunks=counters["loaded_chunks"] * chunks_per_key,
        evicted_chunks=counters.get("evicted_chunks", 0) * chunks_per_key,
        written_bytes=written_bytes,
        dropped_chunks=counters["dropped_chunks"] * chunks_per_key,
    )


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 3)
