"""Where a document may have prompts recorded, on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.factory.config import load_config, resolve_config
from kvtier.tiers import ConfigError


def resolved(trace: Path, store: Path) -> Path | None:
    tiers = [
        {"type": "gpu"},
        {"type": "pinned", "capacity": "1MiB"},
        {"type": "nvme", "path": str(store), "capacity": "64MiB"},
    ]
    config = load_config({"version": 1, "trace": str(trace), "tiers": tiers})
    return resolve_config(config, chunk_bytes=4096).trace


def test_a_file_in_a_directory_that_is_there_is_taken(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    assert resolved(trace, tmp_path / "store") == trace
    assert not trace.exists(), "looking makes nothing"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", 'trace: "{}" is a directory; name a file in it'),
        ("missing/trace.jsonl", 'trace: there is no directory "{}/missing"; make it, or name another'),
        (
            "link/trace.jsonl",
            'trace: "{}/link/trace.jsonl" lies in the directory of tiers[2]; choose one beside',
        ),
    ],
)
def test_what_can_be_no_such_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(store)
    with pytest.raises(ConfigError) as caught:
        resolved(tmp_path / name, store)
    assert str(caught.value).startswith(message.format(tmp_path))
