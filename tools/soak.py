"""Soaks kvtier: several processes on shared directories, with faults, kills and pauses at random.

    python tools/soak.py [--seconds 600] [--seed N] [--path FOLDER] [--json FILE]

Two worlds at a time. In one all that is stored fits, and what was flushed must be there after a restart; in
the other everything is shared by all, and more than fits. Each has a process that lives as long as the soak,
which must not grow, and one that is killed and started again. The engines are real ones, over few slots, the
NVMe tier on a layer of files with faults, and a tier of another package that misbehaves. Every byte that is
loaded is compared, and the cap is looked at all the time.

Exit status: 0, or 1 where anything was wrong; then the seed and the folder with the logs are named. 130 where
it was interrupted before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from soak_check import check_world  # noqa: E402
from soak_life import led  # noqa: E402
from soak_process import Member, Process  # noqa: E402
from soak_world import World  # noqa: E402

from kvtier.tiers.nvme.index.memory import OWNER, SHARED_MEMORY  # noqa: E402
from kvtier.tiers.nvme.io.files import allocated_bytes  # noqa: E402

MIB = 1024 * 1024
CAPACITY_BYTES = {True: 768 * MIB, False: 64 * MIB}  # by whether the world is roomy
ROOMY_SHARE = 0.4  # of the cap: beyond it the log may drop what nobody has read, so the world ends
BLOCKS_PER_CHUNK = (1, 2, 8)
WORLD_S = 25.0
HIT_WITHIN_S = (0.3, 6.0)
PAUSE_ODDS, PAUSE_S = 0.25, 1.5  # it stands still for a while, instead of being killed
TURN_S = 0.1
PROGRESS_S = 10.0
STUCK_S = 200.0  # without a word; the longest wait of a life is shorter
CAP_LOOKS = 3  # files come and go while they are added up: what counts is what is too much each time
WRONGS_MAX = 10
GROWTH_BYTES_PER_MIN = 2 * MIB


class Place:
    """Where one world follows the other, and who uses them: it is used, then left, then checked."""

    def __init__(self, members: list[Member], *, roomy: bool) -> None:
        self.roomy, self.members = roomy, members
        self.world: World | None = None
        self.ends_at_s = 0.0
        self.is_left = self.is_checked = False
        self.checker: Process | None = None


class Soak:
    """Runs it, in one thread that forks: so it opens no engine of its own."""

    def __init__(self, base: Path, seconds: float, seed: int) -> None:
        self._base, self._seconds, self._random = base, seconds, random.Random(seed)
        self._places = [
            Place([Member(0, mortal=False), Member(1, mortal=True)], roomy=True),
            Place([Member(2, mortal=False), Member(3, mortal=True)], roomy=False),
        ]
        self._selector = selectors.DefaultSelector()
        self._began_s = time.monotonic()
        self._worlds = 0
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.fullest = 0.0  # the largest share of its cap that a directory has taken
        self.is_interrupted = False

    def interrupt(self, *_: object) -> None:
        """End with the present turn: in the middle of one, a fork may not be known yet."""
        self.is_interrupted = True

    def run(self) -> None:
        said_s = time.monotonic()
        try:
            while not self._is_over():
                self._listen()
                for place in self._places:
                    self._turn(place)
                if time.monotonic() - said_s >= PROGRESS_S:
                    said_s = time.monotonic()
                    print(self.progress(), flush=True)
            self._judge_growth()
        finally:
            for process in self._processes():
                process.reap()
            self._selector.close()

    def progress(self) -> str:
        counted = ", ".join(
            f"{self.counts[name]} {what}"
            for name, what in {
                "starts": "starts",
                "kills": "kills",
                "stored": "chunks stored",
                "loaded": "loaded",
                "true_flushes": "true flushes",
            }.items()
        )
        return (
            f"{self._age_s():.0f} s: {self._worlds} worlds, {counted}, at most {self.fullest:.0%} of a cap, "
            f"{len(self.wrong)} wrong"
        )

    def summary(self) -> dict[str, Any]:
        lasting = [member for member in self._members() if not member.mortal]
        return {
            "seconds": round(self._age_s(), 1),
            "wrong": self.wrong,
            "worlds": self._worlds,
            "fullest": round(self.fullest, 3),
            "growth_bytes_per_min": {member.slot: member.growth_bytes_per_min() for member in lasting},
            **dict(sorted(self.counts.items())),
        }

    # --- one turn -----------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        done = self._age_s() > self._seconds and all(place.world is None for place in self._places)
        return self.is_interrupted or done or len(self.wrong) >= WRONGS_MAX

    def _turn(self, place: Place) -> None:
        if place.checker is not None:
            return
        if place.world is None:
            if self._age_s() <= self._seconds:
                self._begin(place)
            return
        self._look_at_cap(place, place.world)
        for member in place.members:
            self._lead(place, member, place.world)
        if place.is_left:
            if not any(member.is_in_world for member in place.members):
                self._check(place, place.world)
        elif time.monotonic() >= place.ends_at_s or self._age_s() > self._seconds:
            place.is_left = True
            for process in [member.process for member in place.members if member.process is not None]:
                process.tell(leave=True)

    def _begin(self, place: Place) -> None:
        """Give the place a new world."""
        self._worlds += 1
        path = self._base / f"world-{self._worlds}"
        path.mkdir()
        place.world = World(
            number=self._worlds,
            path=str(path),
            roomy=place.roomy,
            capacity_bytes=CAPACITY_BYTES[place.roomy],
            blocks_per_chunk=self._random.choice(BLOCKS_PER_CHUNK),
        )
        place.ends_at_s, place.is_left = time.monotonic() + WORLD_S, False
        place.is_checked = False
        for member in place.members:
            member.durable, member.gone = set(), set()
            if member.process is not None:
                member.enter(place.world)

    def _look_at_cap(self, place: Place, world: World) -> None:
        directory = Path(world.path, "nvme")
        if not directory.exists():
            return
        share = min(allocated_bytes(directory) for _ in range(CAP_LOOKS)) / world.capacity_bytes
        self.fullest = max(self.fullest, share)
        if share > 1:
            self.wrong.append(f"{directory} takes {share:.1%} of its cap")
        if place.roomy and share > ROOMY_SHARE:
            place.ends_at_s = 0.0

    def _lead(self, place: Place, member: Member, world: World) -> None:
        """Start a process where there is none, and let happen to it what is to happen."""
        if member.process is None:
            if not place.is_left:
                self._start(member)
                member.enter(world)
            return
        now_s = time.monotonic()
        if member.goes_on_at_s is not None:
            if now_s >= member.goes_on_at_s:
                os.kill(member.process.pid, signal.SIGCONT)
                member.goes_on_at_s = None
        elif member.mortal and member.is_in_world and now_s >= member.hit_at_s:
            self._hit(member, member.process, now_s)
        elif now_s - member.process.heard_s > STUCK_S:
            os.kill(member.process.pid, signal.SIGUSR1)
            time.sleep(1)  # in which it writes its stacks to the log
            self.wrong.append(f"process {member.process.pid} is stuck")
            self._lose(member, member.process)

    def _start(self, member: Member) -> None:
        slot, seed = member.slot, self._random.getrandbits(32)
        log = self._base / "lives.log"
        member.process = Process(lambda *ends: led(slot, seed, *ends), log, self._processes())
        member.hit_at_s = time.monotonic() + self._random.uniform(*HIT_WITHIN_S)
        self._selector.register(member.process.answers, selectors.EVENT_READ, member)

    def _hit(self, member: Member, process: Process, now_s: float) -> None:
        """Kill it, or have it stand still for a while."""
        if self._random.random() < PAUSE_ODDS:
            os.kill(process.pid, signal.SIGSTOP)
            member.goes_on_at_s = now_s + PAUSE_S
            member.hit_at_s = member.goes_on_at_s + self._random.uniform(*HIT_WITHIN_S)
            self.counts["pauses"] += 1
        else:
            os.kill(process.pid, signal.SIGKILL)  # its last words are read before its end
            member.hit_at_s = float("inf")
            self.counts["kills"] += 1

    def _check(self, place: Place, world: World) -> None:
        """Have a process hold the world to what was promised in it."""
        durable = {member.slot: member.durable for member in place.members}
        gone = {member.slot: member.gone for member in place.members}
        self.counts["durable"] += sum(map(len, durable.values()))
        self.counts["removed"] += sum(map(len, gone.values()))

        def work(_: int, answers: int) -> None:
            said = "".join(json.dumps({"wrong": each}) + "\n" for each in check_world(world, durable, gone))
            os.write(answers, (said + json.dumps({"checked": True}) + "\n").encode())

        place.checker = Process(work, self._base / "checks.log", self._processes())
        self._selector.register(place.checker.answers, selectors.EVENT_READ, place)

    # --- what is heard ------------------------------------------------------------------------------

    def _listen(self) -> None:
        for key, _ in self._selector.select(TURN_S):
            if isinstance(key.data, Place):
                self._hear_checker(key.data)
            else:
                self._hear_member(key.data)

    def _hear_member(self, member: Member) -> None:
        process = member.process
        assert process is not None, "only who is there is listened to"
        lines = process.lines()
        if lines is None:
            self._lose(member, process)
            return
        for line in lines:
            member.hear(line)
            self.counts.update(line.get("counts", {}))
            if "wrong" in line:
                self._note(f"process {process.pid}: {line['wrong']}")

    def _lose(self, member: Member, process: Process) -> None:
        self._selector.unregister(process.answers)
        expected = member.hit_at_s == float("inf")
        status = process.reap()
        if not expected:
            self._note(f"process {process.pid} has ended by itself, with {status}")
        member.process, member.goes_on_at_s, member.is_in_world = None, None, False

    def _hear_checker(self, place: Place) -> None:
        checker, world = place.checker, place.world
        assert checker is not None, "only who is there is listened to"
        assert world is not None, "there is something to check"
        for line in (lines := checker.lines()) or ():
            if "wrong" in line:
                self._note(f"{world.path}: {line['wrong']}")
            place.is_checked = place.is_checked or "checked" in line
        if lines is not None:
            return
        self._selector.unregister(checker.answers)
        checker.reap()
        place.checker = None
        self.counts["checked"] += place.is_checked
        if not place.is_checked:
            self._note(f"{world.path} could not be checked: see checks.log")
        self._look_for_leftovers(world)
        if not self.wrong:
            shutil.rmtree(world.path)
        place.world = None

    def _look_for_leftovers(self, world: World) -> None:
        """An index that has no checkpoint, because it would not fit the cap, stays in shared memory."""
        is_kept = not Path(world.path, "nvme", "checkpoint").exists()
        for index in indexes_below(Path(world.path)):
            self.counts["indexes_without_checkpoint"] += is_kept
            if not is_kept:
                self._note(f"{index} is left in shared memory")
            shutil.rmtree(index)

    def _judge_growth(self) -> None:
        for member in self._members():
            growth = None if member.mortal else member.growth_bytes_per_min()
            if growth is not None and growth > GROWTH_BYTES_PER_MIN:
                self._note(f"the process of place {member.slot} grows by {growth / MIB:.1f} MiB a minute")

    def _note(self, wrong: str) -> None:
        self.wrong.append(wrong)
        print(f"WRONG at {self._age_s():.1f} s: {wrong}", flush=True)

    def _age_s(self) -> float:
        return time.monotonic() - self._began_s

    def _members(self) -> Iterator[Member]:
        return (member for place in self._places for member in place.members)

    def _processes(self) -> list[Process]:
        checkers = [place.checker for place in self._places]
        members = [member.process for member in self._members()]
        return [process for process in (*checkers, *members) if process is not None]


def main() -> int:
    options = arguments()
    seed = int.from_bytes(os.urandom(4), "big") if options.seed is None else options.seed
    base = Path(tempfile.mkdtemp(prefix="kvtier-soak-", dir=options.path))
    soak = Soak(base, options.seconds, seed)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # by hand, by `timeout`, as a session ends
        signal.signal(number, soak.interrupt)
    print(f"seed {seed}, in {base}", flush=True)
    try:
        soak.run()
    finally:
        summary = {"seed": seed, **soak.summary()}
        print(json.dumps(summary, indent=1))
        if options.json:
            options.json.write_text(json.dumps(summary, indent=1) + "\n")
        if not soak.wrong:
            remove(base)
    if soak.wrong:
        print(f"{len(soak.wrong)} things were wrong: --seed {seed}; {base} is kept", file=sys.stderr)
        return 1
    return 130 if soak.is_interrupted else 0


def remove(base: Path) -> None:
    """Remove all worlds, and the indexes of those that were interrupted."""
    for index in indexes_below(base):
        shutil.rmtree(index)
    shutil.rmtree(base)


def indexes_below(folder: Path) -> Iterator[Path]:
    """The directories in shared memory with indexes of stores below a folder."""
    for owner in SHARED_MEMORY.glob(f"kvtier-index-*/{OWNER}"):
        with suppress(OSError):  # others come and go meanwhile
            if owner.read_bytes().startswith(os.fsencode(f"{folder}/")):
                yield owner.parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="then the last worlds are checked")
    parser.add_argument("--seed", type=int, help="of another run; by default a new one")
    parser.add_argument(
        "--path", type=Path, help="a folder for the directories, by default of temporary files"
    )
    parser.add_argument("--json", type=Path, help="write the summary here, too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
