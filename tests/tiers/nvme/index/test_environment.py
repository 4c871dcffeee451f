from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import lmdb
import pytest

from kvtier.tiers.nvme.index.environment import Index, IndexDamaged, IndexFull
from kvtier.tiers.nvme.index.records import Extent, Namespace, Segment, SegmentState
from kvtier.tiers.nvme.index.transaction import Transaction

MIB = 1024 * 1024
NAMESPACE = b"n" * 32
EXTENT = Extent(7, 2, 300, 65536, 0xDEADBEEF, 1_700_000_000, 3, 1)
SEGMENT = Segment(SegmentState.OPEN, 2, 5, 40, 10, 655360, 1 << 20)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index.open(tmp_path / "index", MIB)
    yield index
    index.close()


def with_scope(index: Index, scope: int = 1) -> None:
    index.write(lambda txn: txn.put_namespace(NAMESPACE, Namespace(scope, 0, 0, 0, 0, 0)))


def opens_in_another_process(path: Path) -> bool:
    code = (
        "import sys; from pathlib import Path; from kvtier.tiers.nvme.index.environment import Index\n"
        "Index.open(Path(sys.argv[1]), 1 << 20).close()"
    )
    return subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 0


def test_records_read_back(index: Index) -> None:
    def fill(txn: Transaction) -> None:
        txn.put_extent(1, b"key", EXTENT)
        txn.put_segment(7, SEGMENT)
        txn.put_namespace(NAMESPACE, Namespace(1, 2, 3, 4, 5, 6))
        txn.set_store_uuid(b"u" * 16)

    index.write(fill)
    with index.read() as txn:
        assert txn.extent(1, b"key") == EXTENT
        assert txn.extent(2, b"key") is None
        assert txn.segments() == {7: SEGMENT}
        assert txn.namespaces() == {NAMESPACE: Namespace(1, 2, 3, 4, 5, 6)}
        assert txn.store_uuid() == b"u" * 16
        assert txn.extents_count() == 1


def test_dropped_records_are_gone(index: Index) -> None:
    index.write(lambda txn: txn.put_extent(1, b"key", EXTENT))
    index.write(lambda txn: txn.drop_extent(1, b"key"))
    index.write(lambda txn: txn.put_segment(7, SEGMENT))
    index.write(lambda txn: txn.drop_segment(7))
    with_scope(index)
    index.write(lambda txn: txn.drop_namespace(NAMESPACE))
    with index.read() as txn:
        assert txn.extent(1, b"key") is None
        assert txn.segment(7) is None
        assert txn.namespace(NAMESPACE) is None


def test_numbers_are_given_out_once(index: Index) -> None:
    assert [index.write(lambda txn: txn.next_number("opened")) for _ in range(3)] == [1, 2, 3]
    assert index.write(lambda txn: txn.next_number("scope")) == 1


def test_lookups_see_the_scope_in_force_only(index: Index) -> None:
    assert index.has(NAMESPACE, [b"a"]) == [False]
    assert index.find(NAMESPACE, [b"a"]) == (0, [None])
    assert index.scope_of(NAMESPACE) == 0
    with_scope(index, 1)
    index.write(lambda txn: txn.put_extent(1, b"a", EXTENT))
    assert index.has(NAMESPACE, [b"a", b"b"]) == [True, False]
    assert index.find(NAMESPACE, [b"b", b"a"]) == (1, [None, EXTENT])
    with_scope(index, 2)
    assert index.has(NAMESPACE, [b"a"]) == [False]
    assert index.find(NAMESPACE, [b"a"]) == (2, [None])


def test_extents_are_listed_by_scope_and_prefix(index: Index) -> None:
    names = [(1, b"aa"), (1, b"ab"), (1, b"b"), (2, b"aa"), (256, b"a")]

    def fill(txn: Transaction) -> None:
        for scope, key in names:
            txn.put_extent(scope, key, EXTENT)

    index.write(fill)
    with index.read() as txn:
        assert [(scope, key) for scope, key, _ in txn.extents()] == names
        assert [key for _, key, _ in txn.extents(1)] == [b"aa", b"ab", b"b"]
        assert [key for _, key, _ in txn.extents(1, b"a")] == [b"aa", b"ab"]
        assert list(txn.extents(3)) == []


def test_a_failed_change_changes_nothing(index: Index) -> None:
    def change(txn: Transaction) -> None:
        txn.put_extent(1, b"key", EXTENT)
        raise ValueError("second thoughts")

    with pytest.raises(ValueError, match="second thoughts"):
        index.write(change)
    with index.read() as txn:
        assert txn.extents_count() == 0


def test_an_illegal_step_of_a_segment_is_caught(index: Index) -> None:
    index.write(lambda txn: txn.put_segment(7, SEGMENT._replace(state=SegmentState.SEALED)))
    with pytest.raises(AssertionError, match="SEALED -> OPEN"):
        index.write(lambda txn: txn.put_segment(7, SEGMENT))


def test_a_full_map_says_so_changes_nothing_and_stays_within_its_size(tmp_path: Path, index: Index) -> None:
    def fill(txn: Transaction, start: int) -> None:
        for number in range(start, start + 100):
            txn.put_extent(1, b"%0100d" % number, EXTENT)

    def fill_up() -> int:
        for start in itertools.count(0, 100):
            try:
                index.write(partial(fill, start=start))
            except IndexFull:
                return start
        raise AssertionError("unbounded")

    start = fill_up()
    with index.read() as txn:
        assert txn.extents_count() == start
    assert (tmp_path / "index" / "data.mdb").stat().st_size <= MIB
    assert index.file_bytes() <= MIB


def test_a_device_that_refuses_is_told_in_our_words(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def reader_check(self) -> int:
            raise lmdb.Error("Input/output error")

    monkeypatch.setattr(index, "_env", Refusing())
    with pytest.raises(IndexDamaged, match="Input/output error"):
        index.free_dead_readers()


def test_what_is_no_index_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "data.mdb").write_bytes(b"no index" * 4096)
    with pytest.raises(IndexDamaged):
        Index.open(tmp_path / "index", MIB)


def test_a_truncated_index_is_damaged(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index", MIB)
    for step in range(20):
        index.write(lambda txn, step=step: txn.put_extent(step, b"k" * 200, EXTENT))  # type: ignore[misc]
    size = index.file_bytes()
    index.close()
    os.truncate(tmp_path / "index" / "data.mdb", size - 4096)
    with pytest.raises(IndexDamaged, match="bytes long and should be"):
        Index.open(tmp_path / "index", MIB)


def test_pages_that_were_never_written_do_not_look_cut_off(tmp_path: Path, index: Index) -> None:
    def put_and_drop(txn: Transaction) -> None:
        for number in range(2000):
            txn.put_extent(1, b"%0100d" % number, EXTENT)
        for number in range(2000):
            txn.drop_extent(1, b"%0100d" % number)

    index.write(put_and_drop)
    assert opens_in_another_process(tmp_path / "index")
    data = tmp_path / "index" / "data.mdb"
    assert index.file_bytes() <= data.stat().st_size == MIB


def test_two_users_in_one_process_share_it(tmp_path: Path, index: Index) -> None:
    other = Index.open(tmp_path / "index", MIB)
    other.write(lambda txn: txn.put_extent(1, b"key", EXTENT))
    other.close()
    other.close()
    with index.read() as txn:
        assert txn.extent(1, b"key") == EXTENT


def test_a_commit_is_seen_by_another_process(tmp_path: Path, index: Index) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from kvtier.tiers.nvme.index.environment import Index\n"
        "from kvtier.tiers.nvme.index.records import Extent\n"
        "index = Index.open(Path(sys.argv[1]), 1 << 20)\n"
        "index.write(lambda txn: txn.put_extent(1, b'theirs', Extent(1, 1, 1, 1, 1, 1, 0, 0)))\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "index"], check=False).returncode == -9
    with index.read() as txn:
        assert txn.extent(1, b"theirs") is not None


def test_reads_go_on_in_many_threads_while_one_writes(index: Index) -> None:
    with_scope(index)
    stop, wrong = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            # Both or neither: they are put and dropped together.
            if index.has(NAMESPACE, [b"a", b"b"]) not in ([True, True], [False, False]):
                wrong.append(1)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()

    def put(txn: Transaction) -> None:
        txn.put_extent(1, b"a", EXTENT)
        txn.put_extent(1, b"b", EXTENT)

    def drop(txn: Transaction) -> None:
        txn.drop_extent(1, b"a")
        txn.drop_extent(1, b"b")

    for _ in range(20):  # each call gives up the interpreter to readers that never pause
        index.write(put)
        index.write(drop)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
