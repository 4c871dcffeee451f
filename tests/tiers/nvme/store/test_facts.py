"""What stands in kvtier.json is checked: a store that is refused says why, in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nvme_rig import made, names, opened

from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.store.facts import FORMAT, read_facts

GOOD = {"format": FORMAT, "store": "00" * 16, "segment_bytes": 1 << 20, "chunk_bytes": 16384}


SIZES: list[Any] = [0, -4096, "x", "1048576", 1e6, 1048577, None, True, 2**70, []]
CHUNKS: list[Any] = [0, -1, "x", 1.5, None, False, 2**70, {}]
FORMATS: list[Any] = [0, -1, True, 1, 1.5, "2", None, FORMAT + 1]


@pytest.mark.parametrize(
    "change",
    [
        *({"segment_bytes": value} for value in SIZES),
        *({"chunk_bytes": value} for value in CHUNKS),
        *({"store": value} for value in ("", "ab", "z" * 32, None, 7, "00" * 17)),
        *({"format": value} for value in FORMATS),
    ],
    ids=str,
)
async def test_facts_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "store"
    made(path, 0o700, {"kvtier.json": json.dumps({**GOOD, **change})})
    with pytest.raises(TierUnavailable, match=r"cannot be understood|has format"):
        await opened(path)
    assert names(path) == ["kvtier.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"x"', "[" * 100_000, "\0", "{}"], ids=repr)
async def test_what_is_no_document_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "store"
    made(path, 0o700, {"kvtier.json": text})
    with pytest.raises(TierUnavailable, match="cannot be understood"):
        await opened(path)


def test_good_facts_are_read(tmp_path: Path) -> None:
    (tmp_path / "kvtier.json").write_text(json.dumps(GOOD))
    facts = read_facts(tmp_path)
    assert facts is not None
    assert (facts.segment_bytes, facts.chunk_bytes) == (1 << 20, 16384)
