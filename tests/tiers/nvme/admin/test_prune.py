"""Removing chunks on request: what is chosen, what is spared, and that it stays away."""

from __future__ import annotations

from pathlib import Path

import damage
import pytest
from nvme_rig import CHUNK_BYTES, IDENTITY, keys_of, opened, right, stored

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.nvme.admin.prune import Enough, Removed, Selection, choose, remove
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.namespaces import Identity
from kvtier.tiers.nvme.store.opening import Store, close_store, open_existing

CHUNKS = 40
READ = 10  # the first ones were read back
OTHER = Identity({"model": "other"})
DIGIT = IDENTITY.digest.hex()[0]


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, CHUNKS))
    await right(tier, keys_of(0, READ))
    await tier.close()
    other = await opened(path, identity=OTHER)
    await stored(other, keys_of(0, 3))
    await other.close()
    return path


async def pruned(path: Path, selection: Selection) -> list[Removed]:
    store = open_existing(Files(), path)
    try:
        return [await remove(store, one, lambda _: None) for one in choose(store, selection)]
    finally:
        close_store(store)


async def there(path: Path, identity: Identity = IDENTITY) -> list[ChunkKey]:
    tier = await opened(path, identity=identity)
    try:
        return await right(tier, keys_of(0, CHUNKS))
    finally:
        await tier.close()


def chosen_of(path: Path, selection: Selection) -> dict[str, int]:
    store = open_existing(Files(), path)
    try:
        return {one.label: len(one.keys) for one in choose(store, selection)}
    finally:
        close_store(store)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), {"m": CHUNKS, "other": 3}),
        (Selection(namespace="m"), {"m": CHUNKS}),
        (Selection(namespace=IDENTITY.digest.hex()[:12]), {"m": CHUNKS}),
        (Selection(namespace=IDENTITY.digest.hex()), {"m": CHUNKS}),
        (Selection(namespace=DIGIT), {}),
        (Selection(namespace="nobody's"), {}),
        (Selection(namespace="m", never_read=True), {"m": CHUNKS - READ}),
        (Selection(key_prefix=b"chunk-000000003"), {"m": 10}),
        (Selection(older_than_s=3600), {}),
    ],
)
async def test_all_that_is_given_has_to_hold(
    path: Path, selection: Selection, expected: dict[str, int]
) -> None:
    assert chosen_of(path, selection) == expected


@pytest.mark.parametrize("least_recently_used", [False, True])
async def test_enough_of_the_oldest_is_removed_and_what_is_used_outlives_it(
    path: Path, least_recently_used: bool
) -> None:
    """The first ten were read: the longest stored, and the last used."""
    enough = Enough(5 * CHUNK_BYTES - 1, least_recently_used)
    assert chosen_of(path, Selection("m", enough=enough)) == {"m": 5}, "no chunk is cut"
    await pruned(path, Selection("m", enough=enough))
    left = await there(path)
    gone = keys_of(READ, 5) if least_recently_used else keys_of(0, 5)
    assert left == [key for key in keys_of(0, CHUNKS) if key not in gone]


async def test_more_than_there_is_takes_all_namespaces(path: Path) -> None:
    assert chosen_of(path, Selection(enough=Enough(1 << 60))) == {"m": CHUNKS, "other": 3}
    assert chosen_of(path, Selection(enough=Enough(CHUNK_BYTES))) == {"m": 1}, "the oldest of all"


async def test_a_label_does_not_name_the_namespaces_whose_digests_begin_like_it(path: Path) -> None:
    tier = await opened(path, identity=Identity({"model": DIGIT}))
    await stored(tier, keys_of(0, 2))
    await tier.close()
    assert chosen_of(path, Selection(namespace=DIGIT)) == {DIGIT: 2}


async def test_what_was_removed_stays_away_when_the_index_is_lost(path: Path) -> None:
    (removed,) = await pruned(path, Selection(namespace="m", never_read=True))
    assert (removed.chunks, removed.size_bytes) == (CHUNKS - READ, (CHUNKS - READ) * CHUNK_BYTES)
    damage.lose_index(path)
    assert await there(path) == keys_of(0, READ)
    assert await there(path, OTHER) == keys_of(0, 3)


async def test_chunks_can_be_removed_right_after_the_index_was_lost(path: Path) -> None:
    damage.lose_index(path)  # and the cap with it
    (removed,) = await pruned(path, Selection(namespace="other"))
    assert removed.chunks == 3
    assert await there(path, OTHER) == []
    assert await there(path) == keys_of(0, CHUNKS)


async def test_whether_a_chunk_was_read_is_not_known_before_a_rebuild(path: Path) -> None:
    damage.lose_index(path)
    assert chosen_of(path, Selection(never_read=True)) == {}
    assert chosen_of(path, Selection(namespace="m")) == {"m": CHUNKS}


@pytest.mark.slow
async def test_a_removal_evicts_nothing_also_where_the_rebuilt_cap_just_holds_the_store(path: Path) -> None:
    tier = await opened(path)
    many = keys_of(1000, 2000)
    await stored(tier, many)
    await tier.close()
    damage.lose_index(path)
    (removed,) = await pruned(path, Selection(namespace="other"))
    assert removed.chunks == 3
    tier = await opened(path)
    assert await right(tier, many) == many
    await tier.close()


async def test_the_cap_that_the_servers_set_is_left_as_it_is(path: Path) -> None:
    def cap(store: Store) -> int:
        with store.index.read() as txn:
            return txn.number("capacity_bytes")

    store = open_existing(Files(), path)
    try:
        before = cap(store)
        for chosen in choose(store, Selection(namespace="m")):
            await remove(store, chosen, lambda _: None)
        assert cap(store) == before
    finally:
        close_store(store)


async def test_what_was_read_since_it_was_chosen_is_spared_and_not_counted(path: Path) -> None:
    store = open_existing(Files(), path)
    try:
        (chosen,) = choose(store, Selection(namespace="m", never_read=True))
        tier = await opened(path)
        await right(tier, keys_of(READ, 5))
        await tier.close()  # counts the reads
        removed = await remove(store, chosen, lambda _: None)
    finally:
        close_store(store)
    assert removed.chunks == CHUNKS - READ - 5
    assert await there(path) == keys_of(0, READ + 5)


async def test_a_server_that_has_the_store_open_misses_what_was_removed_and_goes_on(path: Path) -> None:
    server = await opened(path)
    try:
        assert [one.chunks for one in await pruned(path, Selection(namespace="m"))] == [CHUNKS]
        assert not any(server.lookup(keys_of(0, CHUNKS)))
        await stored(server, keys_of(0, CHUNKS))
        assert await right(server, keys_of(0, CHUNKS)) == keys_of(0, CHUNKS)
    finally:
        await server.close()


async def test_chunks_of_a_past_epoch_are_not_chosen(path: Path) -> None:
    tier = await opened(path)
    await tier.invalidate()
    await tier.close()
    assert chosen_of(path, Selection(namespace="m")) == {}
