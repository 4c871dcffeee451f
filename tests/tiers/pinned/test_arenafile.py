import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from arena_child import ArenaChild, share

from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.pinned import arenafile
from kvtier.tiers.pinned.arenafile import ArenaFile, ArenaLayout, arena_path, sweep_stale

RACERS = 6

RACES = 20  # in each, one creates and one removes; most also see a file vanish under the open


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"test-{os.getpid()}-{request.node.name}"
    yield name
    arena_path(name).unlink(missing_ok=True)


@pytest.fixture
def child() -> Iterator[Callable[[], ArenaChild]]:
    """Start processes that end with the test."""
    with ExitStack() as stack:

        def start() -> ArenaChild:
            child = ArenaChild()
            stack.callback(child.kill)
            return child

        yield start


Start = Callable[[], ArenaChild]


def test_the_path_is_there_until_the_last_has_attached(name: str) -> None:
    first = share(name, mappers=2)
    assert arena_path(name).exists()
    second = share(name, mappers=2)
    assert not arena_path(name).exists()
    first.buffer(1)[0] = 5
    assert second.buffer(1)[0] == 5
    first.close()
    second.close()


def test_a_kill_of_all_after_all_have_attached_leaves_nothing(name: str, child: Start) -> None:
    children = [child() for _ in range(3)]
    assert [each.ask("attach", name, 3) for each in children] == ["attached"] * 3
    assert not arena_path(name).exists()
    for each in children:
        each.kill()
    assert not arena_path(name).exists()


def test_a_kill_before_all_have_attached_leaves_a_file_that_the_next_start_removes(
    name: str, child: Start
) -> None:
    killed = child()
    assert killed.ask("attach", name, 2) == "attached"
    killed.kill()
    assert arena_path(name).exists()
    other = share(f"{name}-other", mappers=1)
    assert not arena_path(name).exists()
    other.close()


def test_a_server_of_the_same_name_starts_afresh_after_a_kill(name: str, child: Start) -> None:
    killed = child()
    killed.ask("attach", name, 2)
    killed.ask("write", 0, 9)
    killed.kill()
    first, second = share(name, mappers=2), share(name, mappers=2)
    assert set(second.buffer(0)) == {0}
    first.close()
    second.close()


def test_the_file_of_a_live_server_is_never_swept(name: str, child: Start) -> None:
    live = child()
    live.ask("attach", name, 2)
    live.ask("write", 3, 7)
    for _ in range(100):
        sweep_stale()
    arena = share(name, mappers=2)
    assert set(arena.buffer(3)) == {7}
    arena.close()


def test_a_file_is_live_as_long_as_one_of_its_processes(name: str, child: Start) -> None:
    first, second = child(), child()
    first.ask("attach", name, 3)
    second.ask("attach", name, 3)
    first.kill()
    sweep_stale()
    assert arena_path(name).exists()
    second.kill()
    sweep_stale()
    assert not arena_path(name).exists()


def test_servers_side_by_side_share_nothing(name: str, child: Start) -> None:
    names = [f"{name}-a", f"{name}-b"]
    pairs = [(child(), child()) for _ in names]
    for server, pair in zip(names, pairs, strict=True):
        pair[0].send("attach", server, 2)
        pair[1].send("attach", server, 2)
    assert all(each.answer() == "attached" for pair in pairs for each in pair)
    for value, pair in enumerate(pairs, start=1):
        pair[0].ask("write", 0, value)
    assert [pair[1].ask("read", 0) for pair in pairs] == [[1], [2]]


def test_processes_that_attach_at_once_all_meet(name: str, child: Start) -> None:
    racers = [child() for _ in range(RACERS)]
    for race in range(RACES):
        server = f"{name}-{race}"
        for racer in racers:
            racer.send("attach", server, RACERS)
        assert [racer.answer() for racer in racers] == ["attached"] * RACERS
        assert not arena_path(server).exists()
        for value, racer in enumerate(racers):
            racer.ask("write", value, value + 1)
        seen = [[racer.ask("read", value) for value in range(RACERS)] for racer in racers]
        assert seen == [[[value + 1] for value in range(RACERS)]] * RACERS
        for racer in racers:
            racer.ask("close")


def test_processes_that_disagree_hear_what_each_has(name: str, child: Start) -> None:
    arena = share(name, mappers=2)
    assert child().ask("attach", name, 2, 2, 9) == (
        f"pinned: {arena_path(name)} holds 8 slots of 2 x 5000 bytes for 2 ranks in 2 processes; "
        "this process has 9 slots of 2 x 5000 bytes for 2 ranks in 2 processes"
    )
    assert arena_path(name).exists()
    other = share(name, mappers=2)
    arena.close()
    other.close()


def test_a_file_of_another_version_is_refused_and_left_alone(name: str) -> None:
    arena = share(name, mappers=2)
    with arena_path(name).open("r+b") as file:
        file.seek(8)
        file.write(b"\x63")
    with pytest.raises(TierUnavailable, match="another version of kvtier"):
        share(name, mappers=2)
    assert arena_path(name).exists()
    arena.close()


def test_a_file_of_another_user_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = share(name, mappers=2)
    maker = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: maker + 1)
    with pytest.raises(TierUnavailable, match=f"belongs to user {maker}, not"):
        share(name, mappers=2)
    arena.close()


def test_a_link_in_place_of_the_file_is_not_followed(name: str, tmp_path: "os.PathLike[str]") -> None:
    target = os.path.join(tmp_path, "target")
    open(target, "wb").close()
    arena_path(name).symlink_to(target)
    with pytest.raises(TierUnavailable, match="cannot be used"):
        share(name, mappers=1)
    assert os.path.getsize(target) == 0


def test_a_file_that_its_maker_left_blank_is_completed(name: str) -> None:
    with arena_path(name).open("x+b") as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # or the next start would sweep it
        arena = share(name, mappers=1)
    arena.buffer(7)[0] = 1
    arena.close()


def test_a_file_removed_between_open_and_lock_is_made_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, sweeps = fcntl.flock, iter([True, True, False])

    def late_flock(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH and next(sweeps):
            arena_path(name).unlink()  # as a sweep does that finds the new file without a lock
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late_flock)
    arena = share(name, mappers=2)
    assert arena._file is not None
    assert os.path.samestat(os.fstat(arena._file.fd), arena_path(name).stat())
    arena.close()


def test_a_file_that_vanishes_again_and_again_is_given_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: arena_path(name).unlink(missing_ok=True))
    with pytest.raises(TierUnavailable, match="keeps being removed by other processes"):
        ArenaFile.attach(name, ArenaLayout(1, 1, 1, 1, 1))


def test_who_leaves_early_counts_no_more(name: str) -> None:
    first, second = share(name, mappers=3), share(name, mappers=3)
    first.close()
    again = share(name, mappers=3)
    assert arena_path(name).exists()
    third = share(name, mappers=3)
    assert not arena_path(name).exists()
    for arena in (second, again, third):
        arena.close()


def test_the_last_to_leave_before_all_have_come_removes_the_file(name: str) -> None:
    first, second = share(name, mappers=3), share(name, mappers=3)
    first.close()
    assert arena_path(name).exists()
    second.close()
    assert not arena_path(name).exists()


def test_a_process_stopped_in_the_critical_section_is_not_waited_for_without_end(
    name: str, child: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = child()
    stopped.ask("attach", name, 3)
    stopped.ask("hold_critical_section", name)
    monkeypatch.setattr(arenafile, "LOCK_WAIT_S", 0.0)
    with pytest.raises(TierUnavailable, match="no lock on the arena within"):
        share(name, mappers=3)


@pytest.mark.parametrize("pair", [("a/b", "a_b"), ("a/b", "a:b"), ("x" * 200, "x" * 201), ("../a", "a")])
def test_names_that_differ_have_files_that_differ(pair: tuple[str, str]) -> None:
    first, second = map(arena_path, pair)
    assert first != second
    assert first.parent == second.parent == arenafile.SHARED_MEMORY
    assert len(first.name) < 255


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_nothing_of_a_slot_shares_a_page_with_the_marks(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "PAGESIZE", page)
    layout = ArenaLayout(slot_count=1000, part_bytes=1, parts=3, ranks=3, mappers=4)
    assert layout.slots_offset % page == 0
    assert layout.slots_offset >= page + 3 * 1000 * (4 + 4 + 1)
    assert layout.size_bytes == layout.slots_offset + 1000 * 3 * 4096
