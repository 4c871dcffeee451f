"""Writes kvtier.json again where it was lost or damaged: what stood in it is in the segments, too."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

from ...errors import TierUnavailable
from ..format.codec import Header
from ..format.segment_file import SegmentFile
from ..io.blocks import BLOCK_BYTES
from ..io.files import Files
from ..log.budget import Facts
from ..store.facts import FACTS, FormatRefused, put_facts, read_facts
from ..volume.ownership import refuse_foreign


def restore_facts(files: Files, root: Path) -> bool:
    """Write the facts of the store at `root` again, if there are none that can be read; whether that was so.

    Raises:
        TierUnavailable: no segment says what they were, or they are of another format.
        OSError: they cannot be written.
    """
    try:
        if read_facts(root) is not None:
            return False
    except FormatRefused:
        raise
    except TierUnavailable:
        pass  # it cannot be understood
    if not (root / "segments").is_dir():
        return False
    refuse_foreign(root, is_store=True)
    put_facts(files, root, _found_again(files, root))
    return True


def _found_again(files: Files, root: Path) -> Facts:
    sizes: Counter[tuple[bytes, int]] = Counter()
    chunk_bytes = 0
    for path in sorted((root / "segments").glob("*.seg")):
        with suppress(OSError), path.open("rb", buffering=0) as raw:
            header = Header.decode(raw.read(BLOCK_BYTES))
            if header is None:
                continue
            size_bytes = path.stat().st_size
            sizes[header.name.store, size_bytes] += 1
            file = SegmentFile(files, raw.fileno(), header.name, size_bytes)
            lengths = (entry.length_bytes for batch in file.sweep() for entry in batch.entries)
            chunk_bytes = max(chunk_bytes, *lengths, 0)
    if not sizes or not chunk_bytes:
        raise TierUnavailable(
            "nvme", f"{root / FACTS} is lost, and no segment says what it was; remove {root}"
        )
    (store, segment_bytes), _ = sizes.most_common(1)[0]
    return Facts(store, segment_bytes, chunk_bytes)
