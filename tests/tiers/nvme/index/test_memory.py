"""Shared memory for an index: what memory a container leaves for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nvme_rig import MIB

from kvtier.tiers.cgroups import CGROUP_ROOT
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.index.memory import refuse_limited

NAMES = {
    "0::/a\n": ("a", "memory.max", "memory.current"),
    "4:memory:/a\n": ("memory/a", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}


@pytest.fixture(params=NAMES, ids=["v2", "v1"])
def own(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A group of 100 MiB, of which 90 are in use."""
    folder, limit, used = NAMES[request.param]
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / limit).write_text(str(100 * MIB))
    (tmp_path / folder / used).write_text(str(90 * MIB))
    (tmp_path / "own").write_text(request.param)
    return tmp_path / "own"


def test_an_index_that_may_outgrow_its_container_is_told(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    refuse_limited(MIB, 200 * MIB, own.parent, own)
    assert f"allows {100 * MIB}" in caplog.text


def test_an_index_that_fits_its_container_is_not_worth_a_word(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_limited(MIB, 50 * MIB, own.parent, own)
    assert caplog.text == ""


def test_an_index_that_does_not_even_fit_at_the_start_is_refused(own: Path) -> None:
    with pytest.raises(TierUnavailable, match=f"takes {20 * MIB} bytes at once.*memory"):
        refuse_limited(20 * MIB, 50 * MIB, own.parent, own)


@pytest.fixture
def group() -> Iterator[tuple[Path, Path]]:
    """A real group: the file that takes its processes, and the one that takes its limit."""
    v1 = CGROUP_ROOT / "memory"
    parent = v1 if v1.is_dir() else CGROUP_ROOT
    folder = parent / f"kvtier-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error.strerror}")
    try:
        limit = folder / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")
        if not limit.exists():
            pytest.skip("control groups here have no limits on memory")
        yield folder / "cgroup.procs", limit
    finally:
        folder.rmdir()


@pytest.mark.root
def test_a_process_in_a_small_container_finds_its_limit(group: tuple[Path, Path]) -> None:
    processes, limit = group
    limit.write_text(str(200 * MIB))
    script = f'echo $$ > {processes}; exec "$@"'
    code = "from kvtier.tiers.nvme.index.memory import refuse_limited; refuse_limited(1 << 20, 1 << 30)"
    command = ["sh", "-c", script, "sh", sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{limit} allows {200 * MIB}" in ended.stderr
