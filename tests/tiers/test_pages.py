"""The system's page is asked for, in the index and in the arena."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from page_shim import page_shim


def test_the_arena_and_the_index_take_the_pages_that_the_system_has(tmp_path: Path) -> None:
    code = (
        "import sys, mmap\n"
        "from pathlib import Path\n"
        "from kvtier.tiers.nvme.index.environment import Index\n"
        "from kvtier.tiers.pinned.arena import Arena\n"
        "index = Index.open(Path(sys.argv[1]), 1 << 20)\n"
        "assert mmap.PAGESIZE == 65536\n"
        "assert index._shared.page_bytes == 32768, 'the largest that LMDB takes'\n"
        "assert index.file_bytes() % 32768 == 0\n"
        "arena = Arena.private(10, 5000)\n"
        "arena.close()\n"
        "index.close()\n"
    )
    command = [
        "env",
        f"LD_PRELOAD={page_shim(tmp_path, 65536)}",
        sys.executable,
        "-c",
        code,
        str(tmp_path / "index"),
    ]
    subprocess.run(command, check=True)
