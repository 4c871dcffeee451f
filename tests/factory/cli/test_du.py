from __future__ import annotations

from pathlib import Path

from nvme_rig import CHUNK_BYTES
from store_cli import CHUNKS, run, run_json

from kvtier.tiers.nvme.io.files import BLOCK_BYTES, allocated_bytes


def test_du_tells_what_was_ever_of_use(path: Path) -> None:
    found = run_json("du", str(path))
    assert found["live_chunks"] == CHUNKS
    assert found["live_bytes"] == CHUNKS * CHUNK_BYTES
    assert found["useful_bytes"] == 10 * CHUNK_BYTES
    # The mark that the store is in use is a file of its own while we look.
    assert found["allocated_bytes"] - allocated_bytes(path) in (0, BLOCK_BYTES)
    assert sum(found["parts"].values()) <= found["allocated_bytes"]
    code, text = run("du", str(path))
    assert code == 0
    assert "160KiB (25.0%)" in text
