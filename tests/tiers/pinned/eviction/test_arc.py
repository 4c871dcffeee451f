from __future__ import annotations

from eviction_rig import anything, insert, touch

from kvtier.tiers.pinned.eviction.arc import ArcPolicy


def test_arc_keeps_recent_chunks_when_their_ghosts_come_back() -> None:
    arc = ArcPolicy(4)
    insert(arc, [b"new0", b"new1"])
    insert(arc, [b"again0", b"again1"])
    touch(arc, [b"again0", b"again1"])
    assert arc.evict(1, anything) == [b"new1"]
    insert(arc, [b"new1"])  # its ghost was there: the first list was cut too short
    assert arc.evict(1, anything) == [b"again1"]
    assert b"new0" in arc


def test_arc_gives_room_back_when_ghosts_of_used_chunks_come_back() -> None:
    arc = ArcPolicy(4)
    insert(arc, [b"new0", b"new1"])
    insert(arc, [b"again0", b"again1"])
    touch(arc, [b"again0", b"again1"])
    arc.evict(1, anything)
    insert(arc, [b"new1"])
    assert arc.evict(1, anything) == [b"again1"]
    insert(arc, [b"again1"])
    assert arc.evict(1, anything) == [b"new0"]
