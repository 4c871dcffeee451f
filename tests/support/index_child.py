"""A process that has a store open, does one thing on each line that it reads, and answers with one line.

store FIRST COUNT   how many were stored
look FIRST COUNT    how many are found
hold                stays inside a write transaction of the index until the next line
read                stays inside a read transaction until it is killed
fork                leaves a child behind that has all that this process has; says its pid
close               closes the store
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from nvme_rig import MIB, filled, keys_of, opened

from kvtier.tiers.nvme.tier import NvmeTier


def say(text: object) -> None:
    print(text, flush=True)


def forked() -> int:
    """Fork a child that does nothing; it outlives this process. Returns once the child runs."""
    runs, told = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # who waits for our end waits for that of our output
        os.write(told, b".")
        signal.alarm(60)  # which ends it
        signal.pause()
    os.read(runs, 1)
    os.close(runs)
    os.close(told)
    return child


async def do(tier: NvmeTier, command: str, numbers: list[int]) -> None:
    if command == "store":
        keys = keys_of(*numbers)
        say(len((await tier.store(keys, filled(keys))).succeeded))
    elif command == "look":
        say(sum(tier.lookup(keys_of(*numbers))))
    elif command == "hold":
        tier._index.write(lambda _: (say("holding"), sys.stdin.readline())[0])
    elif command == "read":
        with tier._index.read():
            say("reading")
            sys.stdin.readline()
    elif command == "fork":
        say(forked())
    elif command == "close":
        await tier.close()
        say("closed")


async def main() -> None:
    where, place = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        tier = await opened(where, capacity_bytes=16 * MIB, memory=place)
    except Exception as error:
        say(f"{type(error).__name__}: {error}")
        return
    say("open")
    for line in iter(sys.stdin.readline, ""):
        command, *rest = line.split()
        await do(tier, command, [int(number) for number in rest])


if __name__ == "__main__":
    asyncio.run(main())
