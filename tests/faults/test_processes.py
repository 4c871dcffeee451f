"""Processes that are killed, forked, or in containers"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import damage
import pytest
from crash_child import DeadlyFiles
from faults import fault, in_child
from faulty_files import AnotherBoot
from nvme_rig import MIB, filled, keys_of, opened, right, stored

SUPPORT = Path(__file__).parents[1] / "support"
OLD, NEW = keys_of(0, 40), keys_of(100, 40)


@fault(
    "kill -9 (the out-of-memory killer, a lost container)",
    sees="other servers of the directory: nothing",
    loses="stores under way; what is in slots only",
    heals="by itself, at the next start",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "store"

    async def live() -> None:
        tier = await opened(path)
        await stored(tier, OLD)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(live) == -signal.SIGKILL

    async def again() -> None:
        tier = await opened(path)
        assert await right(tier, OLD) == OLD
        await stored(tier, NEW)
        await tier.close()

    assert in_child(again) == 0


def fork_and_end() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


@fault(
    "a process is forked from a server, and ends",
    sees="nothing",
    loses="nothing",
    heals="-",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_fork(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "store")
    try:
        await stored(tier, OLD)
        fork_and_end()
        await stored(tier, NEW)
        assert await right(tier, OLD + NEW) == OLD + NEW
    finally:
        await tier.close()


@fault(
    "two containers, each with a PID namespace of its own, use one directory",
    sees="the second is refused with `TierUnavailable` that names `hostPID` or `shareProcessNamespace`",
    loses="nothing",
    heals="share the PID namespace and /dev/shm, or give each a directory",
)
@pytest.mark.root
def test_two_containers(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from nvme_rig import opened\n"
        "async def main():\n"
        "    tier = await opened(Path(sys.argv[1]))\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
        "    await tier.close()\n"
        "asyncio.run(main())\n"
    )
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        sys.executable,
        "-c",
        code,
        str(tmp_path / "store"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as first:  # type: ignore[call-overload]
        assert first.stdout.readline() == "ready\n"
        second = subprocess.run(
            command, env=environment, capture_output=True, text=True, input="", check=False
        )
        first.communicate("")
    assert second.returncode != 0
    assert "hostPID" in second.stderr or "shareProcessNamespace" in second.stderr, second.stderr


@fault(
    "two servers of one host and one PID namespace use one directory",
    sees="nothing: they share chunks and cap",
    loses="nothing",
    heals="-",
)
async def test_two_servers(tmp_path: Path) -> None:
    one, other = await opened(tmp_path / "store"), await opened(tmp_path / "store")
    try:
        await stored(one, OLD)
        assert await right(other, OLD) == OLD
        await other.store(NEW, filled(NEW))
        assert await right(one, NEW) == NEW
        assert one.stats().capacity_bytes == 64 * MIB
    finally:
        await one.close()
        await other.close()


@fault(
    "a process is killed while it makes a checkpoint, or begins a segment, and then the machine restarts",
    sees="nothing",
    loses="stores under way",
    heals="by itself, at the next start",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("step", ["checkpoint written", "checkpoint in place", "claimed", "trailers written"])
def test_a_kill_and_a_restart(tmp_path: Path, step: str) -> None:
    path = tmp_path / "store"

    async def live() -> None:
        files = DeadlyFiles(step, 1)
        tier = await opened(path, capacity_bytes=16 * MIB, files=files)
        for first in range(1000, 1400, 40):
            await tier.store(keys_of(first, 40), filled(keys_of(first, 40)))
        await tier.close()

    async def before() -> None:
        tier = await opened(path, capacity_bytes=16 * MIB)
        await stored(tier, OLD)
        await tier.close()

    async def after() -> None:
        tier = await opened(path, capacity_bytes=16 * MIB, files=AnotherBoot())
        await tier._keeper.caught_up()
        assert await right(tier, OLD) == OLD
        await stored(tier, NEW)
        await tier.close()

    assert in_child(before) == 0
    assert in_child(live) == -signal.SIGKILL
    damage.lose_memory(path)
    assert in_child(after) == 0
