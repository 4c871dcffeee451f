"""Several replays of one trace, side by side in processes of their own."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Protocol

from ...tiers import Tier
from ...tiers.pinned.slots import SlotTier
from .first_tokens import Speeds
from .replay import ReplayFigures, replay
from .trace import Requests

_given: list[Requests] = []  # in a worker: the trace, given once for all its replays


class Chain(Protocol):
    """A chain to replay through, which can be sent to another process."""

    @property
    def step_keys(self) -> int | None: ...
    @property
    def speeds(self) -> Speeds | None: ...
    @property
    def chunks_per_key(self) -> int: ...
    def pinned(self) -> SlotTier: ...
    def lower(self) -> Sequence[Tier]: ...


def replay_all(
    requests: Requests, chains: Sequence[Chain], told: Callable[[int], None], *, jobs: int
) -> list[ReplayFigures]:
    """Replay the requests through each chain; the figures come in the order of the chains.

    The figures do not depend on the number of jobs. Where this raises, also for an interrupt, no process is
    left.

    Args:
        told: called now and then with how many more requests were served, of all replays.
        jobs: how many processes; with one, none is started.
    """
    jobs = min(jobs, len(chains))
    if jobs <= 1:
        return [_replayed(requests, chain, told) for chain in chains]
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(requests,)) as pool:
        try:
            places = {pool.submit(_work, chain): i for i, chain in enumerate(chains)}
            found: dict[int, ReplayFigures] = {}
            for future in as_completed(places):
                found[places[future]] = future.result()
                told(len(requests))
        except BaseException:
            # Then the pool is broken, and its end waits for nothing but theirs.
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
            raise
    return [found[i] for i in range(len(chains))]


def _begin(requests: Requests) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    _given.append(requests)


def _work(chain: Chain) -> ReplayFigures:
    return _replayed(_given[0], chain, lambda _: None)


def _replayed(requests: Requests, chain: Chain, told: Callable[[int], None]) -> ReplayFigures:
    return replay(
        requests,
        chain.pinned(),
        chain.lower(),
        told,
        step_chunks=chain.step_keys,
        speeds=chain.speeds,
        chunks_per_key=chain.chunks_per_key,
    )
