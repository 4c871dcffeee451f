"""Running commands on a store that a test has filled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nvme_rig import keys_of, opened, right, stored
from typer.testing import CliRunner

from kvtier.factory.cli.app import app
from kvtier.tiers.nvme.tier import NvmeTier

CHUNKS = 40
READ_BACK_CHUNKS = 10  # the first ones


def run(*arguments: str) -> tuple[int, str]:
    """Run a command in this process; gives exit status and output."""
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


def run_json(*arguments: str) -> Any:
    """What a command that must succeed prints with --json."""
    code, output = run(*arguments, "--json")
    assert code == 0, output
    return json.loads(output)


def usage(path: Path) -> Any:
    """What `du` tells of one store."""
    (store,) = run_json("du", str(path))["stores"]
    return store


def with_tier(path: Path, work: Callable[[NvmeTier], Awaitable[object]], **changes: Any) -> None:
    """Open an nvme tier, do some work with it, and close it."""

    async def whole() -> None:
        tier = await opened(path, **changes)
        try:
            await work(tier)
        finally:
            await tier.close()

    asyncio.run(whole())


def fill(path: Path) -> None:
    """Make a store of `CHUNKS` chunks, of which the first ones were read back."""

    async def work(tier: NvmeTier) -> None:
        await stored(tier, keys_of(0, CHUNKS))
        await right(tier, keys_of(0, READ_BACK_CHUNKS))

    with_tier(path, work)
