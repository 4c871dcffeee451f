"""The drives of an nvme tier: their config entries, and what this machine has at their paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from ..tiers import ConfigError
from ..tiers.nvme.io.files import Files
from ..tiers.nvme.store.directory import StoreDirectory
from ..tiers.nvme.volume.mounts import is_mount_point
from ..tiers.nvme.volume.probe import examined
from .room import Wanted
from .sizes import Capacity, Size
from .text.units import Percent, format_size, size_bytes
from .text.wording import quoted, reason_of, shown
from .validation import refused, validated

WRITABLE = os.W_OK | os.X_OK  # what it takes to make a name in a directory

MOUNTS = tuple(map(Path, ("/mnt", "/media", "/data", "/srv")))  # below which drives are mounted
MOUNT_IT = "mount it, and name a directory on it"

DRIVES_MAX = 64  # of one tier: more than any machine has


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


PATH_SCHEMA = {"type": "string", "pattern": "^/"}
Directory = Annotated[Path, BeforeValidator(_absolute_path), WithJsonSchema(PATH_SCHEMA)]
"""The type of a model's field that holds an absolute path."""


class DriveConfig(BaseModel):
    """One drive of several that are one tier."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: Directory = Field(description="The directory on this drive.", examples=["/mnt/nvme0/kvtier"])
    capacity: Capacity | None = Field(
        default=None, description="Maximum size of the directory; by default the tier's.", examples=["2TiB"]
    )
    reserve: Size | None = Field(
        default=None,
        description="Free space to keep on the file system; by default the tier's.",
        examples=["10%"],
    )
    mount: Directory | None = Field(
        default=None, description="Absolute path where the drive must be mounted.", examples=["/mnt/nvme0"]
    )

    @property
    def capacity_bytes(self) -> int:
        """The maximum size of the directory, once resolved."""
        assert isinstance(self.capacity, int), "a percentage becomes bytes in resolve(), which comes first"
        return self.capacity

    @property
    def reserve_bytes(self) -> int:
        """Free space to keep on the file system, once resolved."""
        assert isinstance(self.reserve, int), "a percentage becomes bytes in resolve(), which comes first"
        return self.reserve

    def resolve(self, *, chunk_bytes: int, json_path: str, place: str) -> Self:
        """Return the entry in bytes. `json_path` holds its sizes in the document, `place` its path.

        Raises:
            ConfigError: it cannot work on this machine.
        """
        self._refuse_unmounted(json_path)
        whole_bytes = _file_system_bytes(self.path, place)
        assert self.capacity is not None, "the tier's own stands in"
        assert self.reserve is not None, "the tier's own stands in"
        capacity_bytes = size_bytes(self.capacity, whole_bytes)
        refuse_below_one_chunk(self.capacity, capacity_bytes, chunk_bytes, f"{json_path}.capacity")
        reserve_bytes = size_bytes(self.reserve, whole_bytes)
        if whole_bytes - reserve_bytes < chunk_bytes:
            raise ConfigError(
                f"{json_path}.reserve",
                f"{shown(str(self.reserve))} leaves no room for a chunk on a file system of "
                f'{format_size(whole_bytes)}; lower it, for example to "10%"',
            )
        return self.model_copy(update={"capacity": capacity_bytes, "reserve": reserve_bytes})

    def _refuse_unmounted(self, json_path: str) -> None:
        if self.mount is None:
            return
        try:
            is_mounted = is_mount_point(self.mount)
        except OSError as error:
            raise ConfigError(
                f"{json_path}.mount", f"{quoted(self.mount)} cannot be used: {reason_of(error)}"
            ) from error
        if not is_mounted:
            raise ConfigError(
                f"{json_path}.mount",
                f"nothing is mounted at {quoted(self.mount)}; mount the drive first, or kvtier would fill "
                "the file system below",
            )
        if not Path(os.path.realpath(self.path)).is_relative_to(os.path.realpath(self.mount)):
            raise ConfigError(f"{json_path}.mount", f"{quoted(self.path)} is not in {quoted(self.mount)}")

    def probe(self, *, chunk_bytes: int, json_path: str, place: str) -> None:
        """Refuse what a start would refuse, as far as the machine shows it without a start.

        Raises:
            ConfigError: it cannot be opened as things are.
        """
        from ..tiers.nvme.store.opening import (  # the index, which only a look at a store needs
            refuse_large,
            refuse_small,
        )

        with refused(place):
            facts = StoreDirectory.look(self.path)
            examined(Files(), self.path, thorough=True)
            if facts is not None:
                refuse_large(facts, chunk_bytes)
        with refused(f"{json_path}.capacity"):
            refuse_small(facts, self.capacity_bytes, chunk_bytes)

    def remarks(self, place: str) -> list[str]:
        """Say what works at this path but is probably a mistake."""
        with refused(place):
            mount, _, warned = examined(Files(), self.path)
        if self.path.is_relative_to("/dev") and mount.point == Path("/dev"):
            return [f"{place}: {_device(self.path)} names a device, not a directory: {MOUNT_IT}"]
        said = [f"{place}: {warning}" for warning in warned]
        if mount.point == Path("/") and not warned:
            said.append(
                f"{place}: {self.path} is on the root file system, which the whole machine needs; if a drive "
                f'should be mounted there, add its mount point: "mount": {_probable_mount(self.path)}'
            )
        return said

    def wanted(self, json_path: str, place: str) -> Wanted:
        """The room that it wants, once resolved."""
        return Wanted(json_path, place, self.path, self.capacity_bytes, self.reserve_bytes)

    def summary(self) -> str:
        sizes = f"{format_size(self.capacity_bytes)}, reserve {format_size(self.reserve_bytes)}"
        return f"{self.path}: {sizes}"


def parsed_places(value: object) -> Path | tuple[DriveConfig, ...]:
    """Parse one path, or a list of paths and drives.

    Raises:
        ConfigError: an entry of the list is wrong; its path continues that of the field.
        ValueError: it is neither.
    """
    if not isinstance(value, list | tuple):
        return _absolute_path(value)
    if not value:
        raise ValueError("is empty; list one directory for each drive")
    if len(value) > DRIVES_MAX:
        raise ValueError(f"has {len(value)} directories; one tier takes at most {DRIVES_MAX}")
    return tuple(_drive(entry, f"[{i}]") for i, entry in enumerate(value))


def _drive(entry: Any, json_path: str) -> DriveConfig:
    if isinstance(entry, DriveConfig):
        return entry
    if isinstance(entry, dict):
        return validated(DriveConfig, entry, json_path)
    try:
        return DriveConfig(path=_absolute_path(entry))
    except ValueError as error:
        raise ConfigError(json_path, str(error)) from error


def written_places(places: Path | tuple[DriveConfig, ...]) -> Any:
    """Return the field as a document has it."""
    if isinstance(places, Path):
        return str(places)
    return [drive.model_dump(mode="json", exclude_none=True) for drive in places]


def _field_schema(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field that may be left out, but not null."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
    rest = {name: value for name, value in field.items() if name not in ("default", "anyOf")}
    return {**rest, "anyOf": kinds} if kinds else rest


_DRIVE_SCHEMA = {
    "type": "object",
    "required": ["path"],
    "additionalProperties": False,
    "properties": {
        name: _field_schema(field) for name, field in DriveConfig.model_json_schema()["properties"].items()
    },
}
PLACES_SCHEMA = {
    "anyOf": [
        PATH_SCHEMA,
        {
            "type": "array",
            "minItems": 1,
            "maxItems": DRIVES_MAX,
            "items": {"anyOf": [PATH_SCHEMA, _DRIVE_SCHEMA]},
        },
    ]
}


def _device(path: Path) -> Path:
    """The device that a path below /dev begins with."""
    return Path(*path.parts[:3])


def _probable_mount(path: Path) -> str:
    """Where a drive would be mounted that has this path, for people; where that is custom, the very place."""
    for home in MOUNTS:
        if path.is_relative_to(home) and path != home:
            return quoted(Path(*path.parts[: len(home.parts) + 1]))
    return "…"


def refuse_below_one_chunk(
    written: int | Percent, capacity_bytes: int, chunk_bytes: int, json_path: str
) -> None:
    if capacity_bytes < chunk_bytes:
        share = "" if isinstance(written, int) else f"{shown(str(written))} is "
        raise ConfigError(
            json_path,
            f"{share}{capacity_bytes} bytes, too small for one chunk; it needs at least {chunk_bytes}",
        )


def _probed(path: Path, json_path: str) -> Path:
    """Return the part of `path` that exists, if this user can make or use the directory there."""
    found = _existing(path, json_path)
    if found.is_block_device():
        raise ConfigError(json_path, f"{_cannot(path, found)} is a device, not a directory; {MOUNT_IT}")
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
