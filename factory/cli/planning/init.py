"""`kvtier init`: writes a tier-config document for this machine, and says why it says what it says."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....tiers import ConfigError
from ..output import AsJson, emit

if TYPE_CHECKING:
    from ...machine.guess import Volume

NONE = "none"  # what to answer for no drive
CAPACITY = "80%"
WHY_CAPACITY = "most of the file system, with room for what else is on it"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes into the document, and why."""

    name: str
    value: str
    why: str


def init(
    file: Annotated[Path, typer.Argument(help="The document to write.")] = Path("tiers.json"),
    pinned: Annotated[
        str | None, typer.Option(help="Capacity of the pinned tier, such as 64GiB.", show_default=False)
    ] = None,
    nvme: Annotated[
        str | None,
        typer.Option(help="Directory on a drive, or none for no nvme tier.", show_default=False),
    ] = None,
    nvme_capacity: Annotated[
        str | None, typer.Option(help="Capacity of the nvme tier, such as 2TiB or 80%.", show_default=False)
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Take the guess for what is not given; ask nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a document for this machine.

    It looks at memory and drives. On a terminal it asks for what is not given, with its guess as the
    default; elsewhere it takes the guess. It never overwrites a file without --force, and writes none that
    `kvtier check` would refuse.
    """
    if os.path.lexists(file) and not force:
        raise ConfigError("", f"{file} is there already; choose another name, or pass --force")
    if os.path.lexists(file) and not file.is_file():  # a device would be gone once a file is in its place
        raise ConfigError("", f"{file} is not a regular file; choose another name")
    for option, value in {"--pinned": pinned, "--nvme": nvme, "--nvme-capacity": nvme_capacity}.items():
        if value == "":  # a script's variable is empty, which must not mean the current directory
            raise ConfigError(option, "is empty; give it a value, or leave the option out")
    asks = not yes and not as_json and sys.stdin.isatty()
    answers = [_pinned(pinned, asks=asks), *_nvme(nvme, nvme_capacity, asks=asks)]
    document = _document({one.name: one.value for one in answers})
    warnings = _checked(document)
    _write(file, document)
    if as_json:
        from .shapes import Init

        reasons = {one.name: one.why for one in answers}
        emit("init", Init(str(file), document, reasons, tuple(warnings)))
        return
    for one in answers:
        typer.echo(f"{one.name}: {one.value} ({one.why})")
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{file} is written. Next: kvtier explain {file} --model ..., kvtier doctor {file}")


def _pinned(given: str | None, *, asks: bool) -> Answer:
    from ....tiers.pinned.arenafile import SHARED_MEMORY
    from ....tiers.pinned.memory import memory_room, shared_memory_room
    from ...machine.guess import guess_pinned

    guess = guess_pinned(memory_room().left_bytes, shared_memory_room(SHARED_MEMORY).left_bytes)
    return _answer("pinned", "Capacity of the pinned tier", given, guess.value, guess.why, asks=asks)


def _nvme(given: str | None, capacity: str | None, *, asks: bool) -> Sequence[Answer]:
    from ...machine.guess import guess_drive, volumes
    from ...machine.host import Host

    place, why = _guess(guess_drive(volumes(Host())))
    path = _answer("nvme", "Directory on a drive, or none", given, place, why, asks=asks)
    if path.value == NONE:
        if capacity is not None:
            raise ConfigError("--nvme-capacity", "there is no drive for it; name one with --nvme")
        return [path]
    size = _answer("nvme capacity", "Capacity of the nvme tier", capacity, CAPACITY, WHY_CAPACITY, asks=asks)
    return [path, size]


def _guess(drive: Volume | None) -> tuple[str, str]:
    from ...text.units import format_size

    if drive is None:
        return NONE, "no drive is mounted beside the root file system that this user could write to"
    free = format_size(drive.free_bytes)
    return str(drive.point / "kvtier"), f"most free space of all drives, {free} on {drive.device}"


def _answer(name: str, question: str, given: str | None, guess: str, why: str, *, asks: bool) -> Answer:
    if given is not None:
        return Answer(name, given, "as given")
    if not asks:
        return Answer(name, guess, why)
    typer.echo(f"{guess}: {why}")
    said = typer.prompt(question, default=guess)
    return Answer(name, said, why if said == guess else "as given")


def _document(answers: Mapping[str, str]) -> dict[str, Any]:
    tiers: list[dict[str, Any]] = [{"type": "gpu"}, {"type": "pinned", "capacity": answers["pinned"]}]
    if answers["nvme"] != NONE:
        path = Path(answers["nvme"]).absolute()
        drive = {"type": "nvme", "path": str(path), "capacity": answers["nvme capacity"]}
        mount = _mount(path)
        tiers.append(drive if mount is None else {**drive, "mount": str(mount)})
    return {"version": 1, "tiers": tiers}


def _mount(path: Path) -> Path | None:
    """Where the drive of a path is mounted; None for the root file system, which is always there."""
    from ....tiers.nvme.volume.mounts import mount_of
    from ....tiers.nvme.volume.probe import existing

    point = mount_of(existing(path)).point
    return None if point in (None, Path("/")) else point


def _checked(document: Mapping[str, Any]) -> list[str]:
    """What is probably a mistake.

    Raises:
        ConfigError: `kvtier check` would refuse it.
    """
    from ...base import PART_ALIGNMENT_BYTES
    from ...config import parse_config, probe_config, remarks, resolve_config, rooms, shortages
    from ...room import room_remarks

    least_bytes = PART_ALIGNMENT_BYTES  # of a chunk: no model's takes less
    config = resolve_config(parse_config(document), chunk_bytes=least_bytes)
    probe_config(config, chunk_bytes=least_bytes)
    found = room_remarks(list(rooms(config, chunk_bytes=least_bytes).values()))
    return [*shortages(config, chunk_bytes=least_bytes), *remarks(config), *found]


def _write(file: Path, document: Mapping[str, Any]) -> None:
    """Write the file as a whole, or not at all. Of a link it is the file behind it."""
    file = file.resolve()
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(document, indent=2) + "\n")
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError("", f"{file} cannot be written: {error.strerror}") from error
