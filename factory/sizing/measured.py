"""What `kvtier bench` has measured on this machine's drives, for `kvtier explain` to use.

One small file in the user's cache directory: a line of figures for each file system. It is best effort:
without it, speeds are assumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...tiers.nvme.volume.mounts import mount_of
from ...tiers.nvme.volume.probe import existing

DRIVES_MAX = 256  # remembered; a machine has few


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of `kvtier bench`."""

    store_bytes_per_s: float
    load_bytes_per_s: float
    chunk_bytes: int
    measured_unix_s: int


def remember(path: Path, found: Measured) -> None:
    """Keep what was measured on the drive at `path`."""
    file = _file()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        others = [item for item in _read(file).items() if item[0] != _drive(path)]
        document = {**dict(others[-DRIVES_MAX:]), _drive(path): asdict(found)}
        draft = file.with_name(f"{file.name}.{os.getpid()}")
        draft.write_text(json.dumps(document, indent=1))
        draft.replace(file)


def remembered(path: Path) -> Measured | None:
    """What was last measured on the drive at `path`, None where nothing was."""
    try:
        return Measured(**_read(_file())[_drive(path)])
    except (KeyError, TypeError, OSError):
        return None


def _read(file: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kvtier" / "bench.json"


def _drive(path: Path) -> str:
    """What tells a file system from every other one, after a reboot too."""
    place = existing(path)
    return f"{mount_of(place).device} {os.statvfs(place).f_fsid:x}"
