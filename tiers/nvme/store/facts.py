"""What a store says of itself in kvtier.json: its format, its name, and the sizes fixed at creation."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from ...errors import TierUnavailable
from ..io.blocks import BLOCK_BYTES
from ..io.files import Files
from ..log.budget import Facts

FORMAT = 4  # raised when another kvtier could misread the directory
FACTS = "kvtier.json"
STORE_BYTES = 16  # of a store's name
BLOCKS_MAX = 1 << 32  # of a segment: what the format can count
FILE_BYTES_MAX = 64 * 1024  # more than was ever written there


REPAIR = "kvtier fsck --repair finds what stood there in the segments"


class FormatRefused(TierUnavailable):
    """The store is of another format than this kvtier's."""


def read_facts(root: Path) -> Facts | None:
    """The facts of the store at `root`, None where there is none.

    Raises:
        TierUnavailable: what is there is not this kvtier's.
    """
    path = root / FACTS
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    try:
        return _facts(root, json.loads(text))
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise TierUnavailable(
            "nvme", f"{path} cannot be understood ({why}); {REPAIR}, or remove {root}"
        ) from error


def write_facts(files: Files, root: Path, new: Facts) -> Facts:
    """Give a new store its name and write its facts, durably."""
    files.reached("creating")
    facts = new._replace(store=uuid.uuid4().bytes)
    put_facts(files, root, facts)
    files.sync_directory(root.parent)
    return facts


def put_facts(files: Files, root: Path, facts: Facts) -> None:
    """Write the facts of a store, durably."""
    document = {"format": FORMAT, **facts._asdict(), "store": facts.store.hex()}
    files.write_small(root / FACTS, json.dumps(document, indent=1).encode())


def _facts(root: Path, document: object) -> Facts:
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    _refuse_format(root, _whole(document, "format", 1))
    store = document.get("store")
    if not isinstance(store, str) or len(store) != 2 * STORE_BYTES:
        raise ValueError(f"store should be {2 * STORE_BYTES} hex digits")
    segment_bytes = _whole(document, "segment_bytes", 4 * BLOCK_BYTES)
    if segment_bytes % BLOCK_BYTES or segment_bytes // BLOCK_BYTES >= BLOCKS_MAX:
        raise ValueError(f"segment_bytes should be whole blocks of {BLOCK_BYTES} bytes")
    return Facts(bytes.fromhex(store), segment_bytes, _whole(document, "chunk_bytes", 1))


def _refuse_format(root: Path, version: int) -> None:
    if version > FORMAT:
        what = f"newer than this kvtier's {FORMAT}; upgrade kvtier"
    elif version < FORMAT:
        what = f"older than this kvtier's {FORMAT}; remove {root}, or choose another path"
    else:
        return
    raise FormatRefused("nvme", f"{root} has format {version}, which is {what}")


def _whole(document: dict[str, object], field: str, least: int) -> int:
    value = document.get(field)
    if type(value) is not int or not least <= value < 1 << 63:
        raise ValueError(f"{field} should be a whole number from {least} on")
    return value
