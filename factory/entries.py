"""The config entries of the built-in tiers.

The factories that open the tiers are in another module, so checking a document imports nothing that runs one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from ..tiers import ConfigError, TierUnavailable
from ..tiers.nvme.store.directory import StoreDirectory
from ..tiers.pinned.arenafile import SHARED_MEMORY, ArenaLayout
from ..tiers.pinned.eviction import POLICIES
from ..tiers.pinned.memory import memory_limit_bytes, memory_room, shared_memory_room
from ..tiers.pinned.numa import memory_nodes
from .base import TierConfig
from .sizes import Capacity, Percent, Size, format_size, parse_size, size_bytes
from .wording import quoted, reason_of, shown, suggested

WRITABLE = os.W_OK | os.X_OK  # what it takes to make a name in a directory


def _known_policy(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(f"unknown policy {shown(name)}; {suggested(name, POLICIES)}")
    return name


def _absolute_path(path: object) -> Path:
    if not isinstance(path, str | Path):
        raise ValueError(f"should be a path, not {shown(path)}")
    if not str(path).strip() or "\0" in str(path) or not _is_utf8(str(path)):
        raise ValueError(f"{shown(str(path))} is not the path of a directory")
    if not os.path.isabs(path):
        meant = os.path.abspath(os.path.expanduser(path))
        raise ValueError(f"{shown(str(path))} is not absolute; did you mean {quoted(meant)}?")
    return Path(path)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class GpuConfig(TierConfig):
    """The server's own KV tensors, in device memory or, without a device, in ordinary memory."""

    type: Literal["gpu"] = Field(description="The server's own KV tensors. Always the first tier.")


class PinnedConfig(TierConfig):
    """A fixed arena in host memory, page-locked where there is a GPU."""

    type: Literal["pinned"] = Field(description="An arena of fixed size in host memory.")
    capacity: Capacity = Field(
        description="Size of the arena. A percentage is a share of the memory that this process may use.",
        examples=["64GiB"],
    )
    policy: Annotated[
        str, AfterValidator(_known_policy), WithJsonSchema({"type": "string", "enum": sorted(POLICIES)})
    ] = Field(
        default="lru",
        description="The eviction policy: which chunks leave first when the arena is full.",
        examples=["lru"],
    )
    numa_node: int | None = Field(
        default=None,
        ge=0,
        description="NUMA node to allocate the arena on, as far as it has room. Use the node that the GPU is "
        "attached to.",
        examples=[0],
    )

    @property
    def capacity_bytes(self) -> int:
        """The size of the arena, once resolved."""
        return _resolved(self.capacity)

    def resolve(self, *, chunk_bytes: int, json_path: str) -> Self:
        capacity_bytes = size_bytes(self.capacity, memory_limit_bytes())
        _refuse_below_one_chunk(self.capacity, capacity_bytes, chunk_bytes, f"{json_path}.capacity")
        if self.numa_node is not None:
            _refuse_unknown_node(self.numa_node, f"{json_path}.numa_node")
        return self.model_copy(update={"capacity": capacity_bytes})

    def shortage(self, *, chunk_bytes: int, json_path: str) -> str:
        layout = ArenaLayout(self.capacity_bytes // chunk_bytes, chunk_bytes, parts=1, ranks=1, mappers=1)
        try:
            with _refused(f"{json_path}.capacity"):
                layout.refuse_beyond(memory_room(), shared_memory_room(SHARED_MEMORY))
        except ConfigError as error:
            return str(error)
        return ""

    def summary(self) -> str:
        node = "" if self.numa_node is None else f", NUMA node {self.numa_node}"
        return f"{format_size(self.capacity_bytes)}, {self.policy}{node}"


class NvmeConfig(TierConfig):
    """A directory on a local drive."""

    type: Literal["nvme"] = Field(description="A directory on a local drive. Chunks survive restarts.")
    path: Annotated[
        Path, BeforeValidator(_absolute_path), WithJsonSchema({"type": "string", "pattern": "^/"})
    ] = Field(
        description="Absolute path of the directory. It is created if missing; several servers may share it.",
        examples=["/mnt/nvme0/kvtier"],
    )
    capacity: Capacity = Field(
        description="Maximum size of the directory. A percentage is a share of the file system.",
        examples=["2TiB"],
    )
    reserve: Size = Field(
        default_factory=lambda: parse_size("10%"),
        description="Free space to keep on the file system, no matter what else fills it. A percentage is a "
        "share of the file system.",
        examples=["10%"],
        json_schema_extra={"default": "10%"},
    )
    load_deadline_s: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds until a load is given up, so that the request recomputes instead.",
        examples=[10],
    )
    write_amplification: float = Field(
        default=1.3,
        ge=1,
        allow_inf_nan=False,
        description="Maximum bytes written per byte stored. What exceeds 1 is spent on rewriting chunks that "
        "are still read when their segment is reclaimed. Raise it to keep more of them, lower it to spare "
        "the drive; 1 rewrites none.",
        examples=[1.3],
    )

    @property
    def capacity_bytes(self) -> int:
        """The maximum size of the directory, once resolved."""
        return _resolved(self.capacity)

    @property
    def reserve_bytes(self) -> int:
        """Free space to keep on the file system, once resolved."""
        return _resolved(self.reserve)

    def resolve(self, *, chunk_bytes: int, json_path: str) -> Self:
        whole_bytes = _file_system_bytes(self.path, f"{json_path}.path")
        capacity_bytes = size_bytes(self.capacity, whole_bytes)
        _refuse_below_one_chunk(self.capacity, capacity_bytes, chunk_bytes, f"{json_path}.capacity")
        reserve_bytes = size_bytes(self.reserve, whole_bytes)
        if whole_bytes - reserve_bytes < chunk_bytes:
            raise ConfigError(
                f"{json_path}.reserve",
                f"{shown(str(self.reserve))} leaves no room for a chunk on a file system of "
                f'{format_size(whole_bytes)}; lower it, for example to "10%"',
            )
        return self.model_copy(update={"capacity": capacity_bytes, "reserve": reserve_bytes})

    def probe(self, *, chunk_bytes: int, json_path: str) -> None:
        from ..tiers.nvme.store.opening import (  # the index, which only a look at a store needs
            refuse_large,
            refuse_small,
        )

        with _refused(f"{json_path}.path"):
            facts = StoreDirectory.look(self.path)
            if facts is not None:
                refuse_large(facts, chunk_bytes)
        with _refused(f"{json_path}.capacity"):
            refuse_small(facts, self.capacity_bytes, chunk_bytes)

    def summary(self) -> str:
        sizes = f"{format_size(self.capacity_bytes)}, reserve {format_size(self.reserve_bytes)}"
        return f"{self.path}: {sizes}"


@contextmanager
def _refused(json_path: str) -> Iterator[None]:
    """Report a tier's refusal as a fault of the field at `json_path`."""
    try:
        yield
    except TierUnavailable as error:
        raise ConfigError(json_path, str(error).removeprefix(f"{error.tier}: ")) from error
    except OSError as error:
        raise ConfigError(json_path, f"{error.filename} cannot be used: {reason_of(error)}") from error


def _resolved(size: int | Percent) -> int:
    assert isinstance(size, int), "a percentage becomes bytes in resolve(), which comes first"
    return size


def _refuse_below_one_chunk(
    written: int | Percent, capacity_bytes: int, chunk_bytes: int, json_path: str
) -> None:
    if capacity_bytes < chunk_bytes:
        share = "" if isinstance(written, int) else f"{shown(str(written))} is "
        raise ConfigError(
            json_path,
            f"{share}{capacity_bytes} bytes, too small for one chunk; it needs at least {chunk_bytes}",
        )


def _refuse_unknown_node(node: int, json_path: str) -> None:
    nodes = memory_nodes()
    if node not in nodes:
        there = (
            f"it has {', '.join(map(str, nodes))}"
            if nodes
            else "it has none to choose from; leave the key out"
        )
        raise ConfigError(json_path, f"this machine has no NUMA node {node}; {there}")


def _probed(path: Path, json_path: str) -> Path:
    """Return the part of `path` that exists, if this user can make or use the directory there."""
    found = _existing(path, json_path)
    if not found.is_dir():
        raise ConfigError(json_path, f"{_cannot(path, found)} is not a directory")
    if not os.access(found, WRITABLE):
        raise ConfigError(json_path, f"{_cannot(path, found)} is not writable by user {os.geteuid()}")
    return found


def _existing(path: Path, json_path: str) -> Path:
    for found in (path, *path.parents):
        if found.exists():
            return found
        if found.is_symlink():
            raise ConfigError(json_path, f"{_cannot(path, found)} is a dangling link; create its target")
    raise AssertionError("the root of an absolute path exists")


def _cannot(path: Path, found: Path) -> str:
    subject = quoted(found)
    return subject if found == path else f"{quoted(path)} cannot be created: {subject}"


def _file_system_bytes(path: Path, json_path: str) -> int:
    try:
        status = os.statvfs(_probed(path, json_path))
    except OSError as error:
        raise ConfigError(json_path, f"{quoted(path)} cannot be used: {reason_of(error)}") from error
    if status.f_blocks == 0:
        raise ConfigError(json_path, f"{quoted(path)} is on a file system that cannot hold files")
    return status.f_blocks * status.f_frsize
