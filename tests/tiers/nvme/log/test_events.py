from __future__ import annotations

from kvtier.tiers.nvme.index.records import Extent
from kvtier.tiers.nvme.log.chunks import Live
from kvtier.tiers.nvme.log.events import Events

CHUNK = Live(b"n" * 32, 1, b"key", Extent(1, 1, 1, 1, 1, 1, 0, 0))


def test_every_listener_is_called_whenever_it_came() -> None:
    events, heard = Events(), list[object]()
    events.rolled()
    events.freed([CHUNK])
    for _ in range(2):
        events.on_rolled(lambda: heard.append("rolled"))
        events.on_freed(heard.append)
    events.rolled()
    events.freed([CHUNK])
    assert heard == ["rolled", "rolled", [CHUNK], [CHUNK]]
