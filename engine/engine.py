"""The library: store and load KV chunks by key, without a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ..tiers.base import KEY_BYTES_MAX, ChunkKey, Failure, Outcome, RemoveReason
from ..tiers.device.gpu import DeviceBlocks, GpuTier
from ..tiers.device.tensors import BlockIds, Tensor, Tensors, check_rows_are_blocks, listed_tensors
from .chain import ChainStats
from .events import ChainEvent, EventLog
from .job import Job
from .library import LibraryChain
from .lifetime import ChainSpec, Kind, Lifetime, chain_of
from .live.publisher import Publisher, facts_of
from .loaded import Loaded
from .loop import LoopThread
from .movement.losses import calling
from .movement.worth import Computing, given_computing
from .namespace import checked_namespace, with_tensors
from .unclosed import CLOSE_S, ClosedByWith, close_if_forgotten


def spec_from_config(config: str | Path | Mapping[str, Any]) -> ChainSpec:
    """Parse a tier config by the package that is installed for it.

    The engine does not know configs; the entry point ``kvtier.chain:composite`` does.

    Raises:
        ConfigError: the document is wrong; the message names the field and the fix.
    """
    (entry_point,) = entry_points(group="kvtier.chain", name="composite")
    parse: Callable[[str | Path | Mapping[str, Any]], ChainSpec] = entry_point.load()
    return parse(config)


class OffloadEngine(ClosedByWith):
    """Keeps chunks of a server's KV cache in the tiers of a config.

    Call it from any thread. `lookup`, `store` and `load` return at once and never wait for a drive; only
    `Job.wait`, `flush` and `close` wait. The blocks that a job names belong to it until it is done: do not
    write to the blocks of a store, and do not read those of a load, before that.

    What waits raises RuntimeError on the engine's own thread, where the callbacks of jobs run; everything
    does in a process that was forked from the engine's.
    """

    def __init__(
        self, spec: ChainSpec, namespace: Mapping[str, str] | None = None, *, events: bool = False
    ) -> None:
        self._namespace = checked_namespace(namespace)
        self._spec = spec
        self._events = EventLog() if events else None
        self._chain_maker = _ChainMaker(spec, self._events)
        self._lifetime = Lifetime(spec, self._chain_maker)
        close_if_forgotten(self, self._lifetime)

    @classmethod
    def open(
        cls,
        config: str | Path | Mapping[str, Any],
        namespace: Mapping[str, str] | None = None,
        *,
        events: bool = False,
    ) -> OffloadEngine:
        """Open an engine on a tier config.

        Args:
            config: a tier-config document, as a path to a JSON file or as the document itself.
            namespace: all that makes two chunks with one key interchangeable, text by name, in any order:
                model, revision, weights, dtype, parallel layout. Chunks of one namespace are never served to
                another. The engine adds what it knows of the tensors, under names that are reserved.
            events: keep what tiers store and remove for `events`.

        Raises:
            ConfigError: the document or the namespace is wrong; the message names the field and the fix.
        """
        return cls(spec_from_config(config), namespace, events=events)

    def register_kv_caches(
        self,
        tensors: Tensors,
        *,
        blocks_per_chunk: int = 1,
        tokens_per_chunk: int | None = None,
        prefill_tokens_per_s: float | None = None,
    ) -> None:
        """Name the server's KV tensors and start the tiers.

        Args:
            tensors: each (num_blocks, ...), in a list or a mapping by layer, all on one device and with
                equally many blocks; block i of the cache is row i of every tensor.
            blocks_per_chunk: how many blocks one key stands for.
            tokens_per_chunk: how many tokens of a prompt that is; only with the next one.
            prefill_tokens_per_s: how fast the server computes prompts. With both, `lookup` counts no chunk
                that a tier is expected to load later than the server could compute it.

        Raises:
            ConfigError: the config does not fit these tensors (a capacity below one chunk, say), or one of
                the last two is wrong or missing.
            TierUnavailable: a tier cannot start; none is left running.
            ValueError: the tensors cannot be used, or others were registered before.
            ClosedError: the engine is closed, perhaps while this call waits.
        """
        self._lifetime.loop.check_may_wait()
        computing = given_computing(tokens_per_chunk, prefill_tokens_per_s)
        self._lifetime.start(*self._start(tensors, blocks_per_chunk, computing))

    def registering(
        self,
        tensors: Tensors,
        *,
        blocks_per_chunk: int = 1,
        tokens_per_chunk: int | None = None,
        prefill_tokens_per_s: float | None = None,
    ) -> Job[None]:
        """`register_kv_caches` as a job, for those who await. Wrong arguments are refused at once."""
        computing = given_computing(tokens_per_chunk, prefill_tokens_per_s)
        return self._lifetime.begin(*self._start(tensors, blocks_per_chunk, computing))

    def lookup(self, keys: Iterable[ChunkKey]) -> int:
        """Count the leading keys that some tier has now.

        Where `register_kv_caches` was told how fast the server computes, what is expected to be computed
        sooner than it is loaded does not count, nor does anything behind it. `load` loads what it is told.
        """
        return self._lifetime.ready().chain.worth_loading(_listed_keys(keys))

    def contains(self, keys: Iterable[ChunkKey]) -> list[str | None]:
        """Name for each key the nearest tier that has it now, None where none has."""
        chain = self._lifetime.ready().chain
        return chain.contains(_listed_keys(keys))

    def store(self, keys: Iterable[ChunkKey], block_ids: BlockIds) -> Job[Outcome]:
        """Copy chunks from the device into the chain; they cascade down on their own.

        Beyond 1,024 stores and loads at a time, further ones wait for their turn, and with them their blocks.
        Far beyond that they are shed: their keys fail as dropped, and count as `shed_chunks`.

        Args:
            keys: one per chunk, in prefix order, all different.
            block_ids: `blocks_per_chunk` blocks for each key, in order; numbers, an array or a tensor.

        Returns:
            A job that is done once the device's blocks are copied; its result says what became of each key.
        """
        keys, caller = _listed_keys(keys), calling()
        blocks = self._blocks(keys, block_ids, distinct=False)
        return self._lifetime.move(
            Kind.STORE,
            lambda chain: chain.store(blocks, keys, caller),
            chunks=len(keys),
            shed=lambda: Outcome(failed=dict.fromkeys(keys, Failure.DROPPED)),
        )

    def load(self, keys: Iterable[ChunkKey], block_ids: BlockIds) -> Job[Loaded]:
        """Copy chunks from whichever tier has them into the device's blocks.

        A key that fails leaves its blocks with nothing of use: compute them. Arguments as for `store`. The
        result also says from which tier each chunk came.
        """
        keys = _listed_keys(keys)
        blocks = self._blocks(keys, block_ids, distinct=True)
        deadlines = self._lifetime.ready().chain.deadlines()  # from here, also where it waits for its turn
        return self._lifetime.move(
            Kind.LOAD,
            lambda chain: chain.load(blocks, keys, deadlines),
            chunks=len(keys),
            shed=lambda: Loaded(failed=dict.fromkeys(keys, Failure.DROPPED)),
        )

    def prefetch(self, keys: Iterable[ChunkKey]) -> Job[Outcome]:
        """Bring chunks from the tiers below into pinned memory, so that a load finds them there.

        What finds no slot at once fails: nothing waits for a prefetch. `close` does not wait for it either.
        """
        listed = _listed_keys(keys)
        return self._lifetime.move(
            Kind.OTHER,
            lambda chain: chain.prefetch(listed),
            chunks=len(listed),
            shed=lambda: Outcome(failed=dict.fromkeys(listed, Failure.DROPPED)),
        )

    def remove(self, keys: Iterable[ChunkKey]) -> Job[None]:
        """Remove chunks from every tier; when the job is done, no tier has what was stored before the call.

        A store of one of the keys that is still in flight may win or lose: wait for it first. The job raises
        TierError where a tier failed; the other tiers have removed theirs all the same. `close` does not wait
        for the job.
        """
        self._lifetime.check_open()
        listed = _listed_keys(keys)
        return self._lifetime.run(lambda chain: chain.remove(listed))

    def clear(self) -> Job[None]:
        """Forget every chunk of this namespace in every tier, for all that share it.

        When the job is done, nothing is found that was stored before the call. The job raises TierError where
        a tier could not be told; such a tier is not used any more. A tier of another package may find its
        chunks again after a restart.
        """
        return self._lifetime.run(lambda chain: chain.clear(RemoveReason.REQUESTED))

    def reset(self) -> Job[None]:
        """Serve nothing again that was stored so far: the weights changed, and no field of the namespace did.

        As `clear`, and what is stored from now on is this engine's own and gone when it closes: no name says
        what the weights are now. Better open an engine with another namespace where you can name them.
        """
        return self._lifetime.run(lambda chain: chain.clear(RemoveReason.INVALIDATED))

    def events(self) -> list[ChainEvent]:
        """Return what the tiers have stored and removed since the last call, oldest first.

        Where nobody asks for long, the oldest are dropped, and `stats()` counts them as `dropped_events`.

        Raises:
            ValueError: the engine was opened without `events=True`.
        """
        if self._events is None:
            raise ValueError("this engine keeps no events: open it with events=True")
        return self._events.take()

    def flush(self, timeout: float | None = None) -> None:
        """Return when everything stored so far is durable in some tier below the pinned one.

        What a tier chose not to keep, for its cap, is left out; `stats()` counts it as `dropped_chunks`.

        Raises:
            TimeoutError: it took longer than `timeout` seconds; it goes on, and swallows nothing.
            NotDurable: some chunks are in no tier below, be it by an error, an open breaker, or because they
                left their slots too soon. Each caller that stored before is told once; storing them again
                tries again.
            TierError: a tier failed to make something durable, or it hangs: for a minute nothing has arrived
                there, or it has not confirmed. The next flush tries again.
        """
        self._lifetime.loop.check_may_wait()
        self.flushing().wait(timeout)

    def flushing(self) -> Job[None]:
        """`flush` as a job, for those who await."""
        return self._lifetime.flush(calling())

    def stats(self) -> ChainStats:
        """Return the numbers of every tier."""
        return self._lifetime.ready().chain.stats()

    def close(self, timeout: float | None = CLOSE_S) -> None:
        """Finish the jobs in flight, bring what waits to the last tier within `timeout` seconds, and stop.

        None waits for as long as the tiers take something. Who still waits for a job or a flush then gets
        ClosedError. Idempotent, and a second call waits for the first, also where an interrupt cut that
        short. What could not be brought down in time is dropped, and logged, as is a tier that fails. A drive
        or device that hangs is left behind, with the memory that it may still touch, after some tens of
        seconds more.
        """
        self._lifetime.end(timeout)

    async def aclose(self, timeout: float | None = CLOSE_S) -> None:
        """`close` without blocking the caller's loop."""
        await asyncio.to_thread(self.close, timeout)

    def check(self) -> None:
        """Assert the integrity of the placement; for tests."""
        self._lifetime.ready().chain.check()

    def _start(
        self, tensors: Tensors, blocks_per_chunk: int, computing: Computing | None
    ) -> tuple[Callable[[], Coroutine[Any, Any, None]], GpuTier]:
        self._lifetime.check_open()
        listed = listed_tensors(tensors)
        check_rows_are_blocks(listed)
        gpu = GpuTier.of_tensors(listed, blocks_per_chunk=blocks_per_chunk)
        identity = with_tensors(self._namespace, _layout_of(listed), blocks_per_chunk)

        async def open_tiers() -> None:
            await self._spec.start(part_bytes=gpu.part_bytes, parts=1, identity=identity)
            gpu.prepare(self._spec.pinned.arena)
            self._chain_maker.computing = computing

        return open_tiers, gpu

    def _blocks(self, keys: Sequence[ChunkKey], block_ids: BlockIds, *, distinct: bool) -> DeviceBlocks:
        """The blocks of a job; made on this thread, so copies come after what its stream was told so far."""
        gpu = self._lifetime.ready().gpu
        assert gpu is not None, "the library's device is in this process"
        return gpu.blocks(keys, block_ids, distinct=distinct)


class _ChainMaker:
    """Makes the chain of an engine, and knows nothing of the engine, which may be forgotten.

    Attributes:
        computing: set before, by the start that is under way.
    """

    def __init__(self, spec: ChainSpec, events: EventLog | None) -> None:
        self._spec, self._events = spec, events
        self.computing: Computing | None = None

    def __call__(self, loop: LoopThread) -> LibraryChain:
        chain = chain_of(LibraryChain, self._spec, self._events, loop, self.computing)
        tokens = self.computing.chunk_tokens if self.computing is not None else None
        facts = facts_of(self._spec, "library", self._spec.pinned.slot_bytes, tokens)
        loop.submit(Publisher(facts, chain.stats).run())  # until the loop is closed
        return chain


def _listed_keys(keys: Iterable[ChunkKey]) -> list[ChunkKey]:
    """The keys of one call.

    Raises:
        ValueError: they are not keys, or two of them are equal.
    """
    if isinstance(keys, bytes | str) or not isinstance(keys, Iterable):
        raise ValueError(f"keys go in a list, [key]; this is {keys!r:.80}")
    listed = list(keys)
    for key in listed:
        if not isinstance(key, bytes) or not 0 < len(key) <= KEY_BYTES_MAX:
            raise ValueError(f"a key is 1 to {KEY_BYTES_MAX} bytes, not {key!r:.80}")
    if len(set(listed)) != len(listed):
        raise ValueError("the keys of one call must differ: two of them are equal")
    return listed


def _layout_of(tensors: Sequence[Tensor]) -> str:
    """What about the tensors makes two chunks' bytes interchangeable."""
    return " ".join(f"{tensor.dtype}{list(tensor.shape[1:])}".removeprefix("torch.") for tensor in tensors)
