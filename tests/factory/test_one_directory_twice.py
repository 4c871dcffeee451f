"""A list of drives in which one directory stands under two paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from mounts import run

from kvtier.factory.base import TierContext
from kvtier.factory.builtin import NvmeFactory
from kvtier.factory.entries import NvmeConfig
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.store.mark import read_mark

CHUNK_BYTES = 16384


@contextmanager
def linked(first: Path, second: Path) -> Iterator[None]:
    second.symlink_to(first)
    yield


@contextmanager
def mounted(first: Path, second: Path) -> Iterator[None]:
    second.mkdir()
    run("mount", "--bind", first, second)
    try:
        yield
    finally:
        run("umount", "--lazy", second)


@pytest.mark.parametrize("again", [linked, pytest.param(mounted, marks=pytest.mark.root)])
@pytest.mark.parametrize("below", ["", "kvtier"], ids=["itself", "a directory in it"])
async def test_one_directory_by_two_paths_is_refused_by_name(
    tmp_path: Path, again: Callable[[Path, Path], AbstractContextManager[None]], below: str
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(mode=0o700)
    with again(first, second):
        paths = [str(first / below), str(second / below)]
        config = NvmeConfig.model_validate(
            {"type": "nvme", "path": paths, "capacity": 64 << 20, "reserve": 0}
        )
        context = TierContext(part_bytes=CHUNK_BYTES, parts=1, identity={"model": "m"})
        with pytest.raises(TierUnavailable, match=f"{paths[0]} and {paths[1]} are one directory"):
            await NvmeFactory.open(config, context)
    mark = read_mark(first / below)
    assert mark is not None
    assert mark.closed
