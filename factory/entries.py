"""The config entries of the built-in tiers.

The factories that open the tiers are in another module, so checking a document imports nothing that runs one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from ..tiers import ConfigError
from ..tiers.nvme.wear.terms import Terms
from ..tiers.pinned.arenafile import SHARED_MEMORY, ArenaLayout
from ..tiers.pinned.eviction import POLICIES, EvictionPolicy, GuardedPolicy
from ..tiers.pinned.memory import memory_limit_bytes, memory_room, shared_memory_room
from ..tiers.pinned.numa import memory_nodes
from .base import TierConfig
from .drives import (
    PLACES_SCHEMA,
    Directory,
    DriveConfig,
    parsed_places,
    refuse_below_one_chunk,
    written_places,
)
from .registry import policy_class
from .room import Wanted, refuse_no_room, rooms_of
from .sizes import Capacity, Size, WholeSize
from .text.units import Percent, format_size, parse_size, size_bytes
from .text.wording import shown, suggested
from .validation import import_named, refused

DRIVE_WRITES_MAX = 1e9  # a day: no drive is so fast, and so many bytes can be counted


class GpuConfig(TierConfig):
    """The server's own KV tensors, in device memory or, without a device, in ordinary memory."""

    type: Literal["gpu"] = Field(description="The server's own KV tensors. Always the first tier.")


_OWN_POLICIES: dict[str, Any] = {
    "if": {"properties": {"policy_module_path": {"type": "null"}}},  # null, or left out
    "then": {"properties": {"policy": {"enum": sorted(POLICIES)}}},
    "else": {"required": ["policy"]},
}


class PinnedConfig(TierConfig):
    """A fixed arena in host memory, page-locked where there is a GPU."""

    model_config = ConfigDict(json_schema_extra=_OWN_POLICIES)

    type: Literal["pinned"] = Field(description="An arena of fixed size in host memory.")
    capacity: Capacity = Field(
        description="Size of the arena. A percentage is a share of the memory that this process may use.",
        examples=["64GiB"],
    )
    policy: str = Field(
        default="reuse",
        description="The eviction policy: which chunks leave first when the arena is full.",
        examples=["reuse"],
    )
    policy_module_path: str | None = Field(
        default=None,
        description="The module of a policy from another package, whose class is named by `policy`.",
        examples=["my_package.my_policy"],
    )
    numa_node: int | None = Field(
        default=None,
        ge=0,
        description="NUMA node to allocate the arena on, as far as it has room. Use the node that the GPU is "
        "attached to.",
        examples=[0],
    )

    @model_validator(mode="after")
    def _has_its_policy(self) -> Self:
        if self.policy_module_path is None:
            if self.policy not in POLICIES:
                raise ConfigError(
                    ".policy", f"unknown policy {shown(self.policy)}; {suggested(self.policy, POLICIES)}"
                )
            return self
        if "policy" not in self.model_fields_set:
            raise ConfigError(".policy", 'missing; it names a class in "policy_module_path"')
        import_named(self.policy_module_path, ".policy_module_path")
        try:
            policy_class(self.policy, self.policy_module_path)
        except (AttributeError, TypeError) as error:
            raise ConfigError(".policy", str(error)) from error
        return self

    @property
    def make_policy(self) -> Callable[[int], EvictionPolicy]:
        """Makes the policy from a capacity in chunks."""
        if self.policy_module_path is None:
            return POLICIES[self.policy]
        return partial(GuardedPolicy, make=policy_class(self.policy, self.policy_module_path))

    @property
    def capacity_bytes(self) -> int:
        """The size of the arena, once resolved."""
        return _resolved(self.capacity)

    def resolve(self, *, chunk_bytes: int, json_path: str) -> Self:
        capacity_bytes = size_bytes(self.capacity, memory_limit_bytes())
        refuse_below_one_chunk(self.capacity, capacity_bytes, chunk_bytes, f"{json_path}.capacity")
        if self.numa_node is not None:
            _refuse_unknown_node(self.numa_node, f"{json_path}.numa_node")
        return self.model_copy(update={"capacity": capacity_bytes})

    def shortage(self, *, chunk_bytes: int, json_path: str) -> str:
        layout = ArenaLayout(self.capacity_bytes // chunk_bytes, chunk_bytes, parts=1, ranks=1, mappers=1)
        try:
            with refused(f"{json_path}.capacity"):
                layout.refuse_beyond(memory_room(), shared_memory_room(SHARED_MEMORY))
        except ConfigError as error:
            return str(error)
        return ""

    def summary(self) -> str:
        node = "" if self.numa_node is None else f", NUMA node {self.numa_node}"
        return f"{format_size(self.capacity_bytes)}, {self.policy}{node}"


_EACH_WITH_CAPACITY: dict[str, Any] = {"type": "array", "items": {"type": "object", "required": ["capacity"]}}


class NvmeConfig(TierConfig):
    """A directory on a local drive, or one on each of several drives."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["capacity"]},
                {"properties": {"path": _EACH_WITH_CAPACITY}},
            ]
        }
    )

    type: Literal["nvme"] = Field(description="A directory on a local drive. Chunks survive restarts.")
    path: Annotated[
        Path | tuple[DriveConfig, ...],
        PlainValidator(parsed_places),
        PlainSerializer(written_places, when_used="json"),
        WithJsonSchema(PLACES_SCHEMA),
    ] = Field(
        description="Absolute path of the directory. It is created if missing; several servers may share it. "
        "A list of directories, one a drive, spreads the chunks over all of them.",
        examples=["/mnt/nvme0/kvtier"],
    )
    capacity: Capacity | None = Field(
        default=None,
        description="Maximum size of the directory, or of each one if there are several. A percentage is a "
        "share of the file system.",
        examples=["2TiB"],
    )
    reserve: Size = Field(
        default_factory=lambda: parse_size("10%"),
        description="Free space to keep on the file system, no matter what else fills it. A percentage is a "
        "share of the file system.",
        examples=["10%"],
        json_schema_extra={"default": "10%"},
    )
    mount: Directory | None = Field(
        default=None,
        description="Absolute path where the drive must be mounted. A start without it is refused, so that "
        "kvtier does not fill the file system below.",
        examples=["/mnt/nvme0"],
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
    fill: bool = Field(
        default=True,
        description="Whether the tier also gets the chunks that a tier further down supplies.",
        examples=[True],
    )
    admission: Literal["always", "second_touch"] = Field(
        default="always",
        description="Which chunks the tier takes. second_touch: only those that are offered a second time, "
        "which writes far less and finds less; for small or worn drives.",
        examples=["always"],
    )
    write_budget: float | None = Field(
        default=None,
        gt=0,
        le=DRIVE_WRITES_MAX,
        allow_inf_nan=False,
        description="Maximum drive writes a day: how often the capacity may be written, of each drive if "
        "there are several. When it is spent, nothing is carried, and then nothing is stored.",
        examples=[1.0],
    )
    endurance: WholeSize | None = Field(
        default=None,
        description="Bytes that the drive is rated for, of each drive if there are several: its TBW. "
        "`kvtier du` and the metrics then show how many years that lasts.",
        examples=["1.2PB"],
    )

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.capacity is None and any(drive.capacity is None for drive in self.drives):
            raise ConfigError(".capacity", 'missing; for example "2TiB"')
        if self.mount is not None and not isinstance(self.path, Path):
            raise ConfigError(
                ".mount", 'belongs to one drive; set it in each drive of "path": {"path": ..., "mount": ...}'
            )
        return self

    @property
    def drives(self) -> tuple[DriveConfig, ...]:
        """The drives, each with the tier's values where it has none of its own."""
        if isinstance(self.path, Path):
            own = DriveConfig.model_construct(
                path=self.path, capacity=self.capacity, reserve=self.reserve, mount=self.mount
            )
            return (own,)
        return tuple(
            drive.model_copy(
                update={
                    "capacity": self.capacity if drive.capacity is None else drive.capacity,
                    "reserve": self.reserve if drive.reserve is None else drive.reserve,
                }
            )
            for drive in self.path
        )

    @property
    def terms(self) -> Terms:
        """What whoever writes to a drive has to keep to."""
        return Terms(self.write_budget, self.endurance or 0)

    @property
    def capacity_bytes(self) -> int:
        """The maximum size of all directories together, once resolved."""
        return sum(drive.capacity_bytes for drive in self.drives)

    @property
    def reserve_bytes(self) -> int:
        """Free space to keep on the file systems, once resolved."""
        return sum(drive.reserve_bytes for drive in self.drives)

    def resolve(self, *, chunk_bytes: int, json_path: str) -> Self:
        drives = tuple(
            drive.resolve(chunk_bytes=chunk_bytes, json_path=sizes, place=place)
            for drive, sizes, place in self.placed(json_path)
        )
        if isinstance(self.path, Path):
            return self.model_copy(update={"capacity": drives[0].capacity, "reserve": drives[0].reserve})
        return self.model_copy(update={"path": drives})

    def probe(self, *, chunk_bytes: int, json_path: str) -> None:
        for drive, sizes, place in self.placed(json_path):
            drive.probe(chunk_bytes=chunk_bytes, json_path=sizes, place=place)
        refuse_no_room(rooms_of(self.wanted(json_path), chunk_bytes=chunk_bytes))

    def remarks(self, json_path: str) -> list[str]:
        return [remark for drive, _, place in self.placed(json_path) for remark in drive.remarks(place)]

    def wanted(self, json_path: str) -> list[Wanted]:
        """The room that each drive wants, once resolved."""
        return [drive.wanted(sizes, place) for drive, sizes, place in self.placed(json_path)]

    def summary(self) -> str:
        return "; ".join(drive.summary() for drive in self.drives)

    def placed(self, json_path: str) -> list[tuple[DriveConfig, str, str]]:
        """Each drive, with the places of its sizes and of its path in the document."""
        if isinstance(self.path, Path):
            return [(self.drives[0], json_path, f"{json_path}.path")]
        places = [f"{json_path}.path[{i}]" for i in range(len(self.path))]
        return list(zip(self.drives, places, places, strict=True))


def _resolved(size: int | Percent) -> int:
    assert isinstance(size, int), "a percentage becomes bytes in resolve(), which comes first"
    return size


def _refuse_unknown_node(node: int, json_path: str) -> None:
    nodes = memory_nodes()
    if node not in nodes:
        there = (
            f"it has {', '.join(map(str, nodes))}"
            if nodes
            else "it has none to choose from; leave the key out"
        )
        raise ConfigError(json_path, f"this machine has no NUMA node {node}; {there}")
