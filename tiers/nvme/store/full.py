"""Gives room back where the file system has none left for a store's small files."""

from __future__ import annotations

import errno
from collections.abc import Callable

from ..index.environment import Index
from ..log.events import Events
from ..log.room import Room
from ..log.segments import Segments
from ..log.victim import Victims


def with_room(segments: Segments, index: Index, work: Callable[[], None]) -> None:
    """Do the work; where the file system is full, give back a segment of the store and try once more.

    Raises:
        OSError: there is still no room, or the file system refused for another reason.
    """
    try:
        work()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _give_back(segments, index):
            raise
        work()


def _give_back(segments: Segments, index: Index) -> bool:
    """Remove the file of one segment, a free one or else the oldest; False where none can be spared."""
    room = Room(segments, index)
    return room.shrink() or (_empty_oldest(segments, index, room) and room.shrink())


def _empty_oldest(segments: Segments, index: Index, room: Room) -> bool:
    with index.read() as txn:
        if txn.newest_unread() is not None:
            return False  # what lies in the segments is not known yet
    victims = Victims(segments, index, room, Events())
    victim = victims.begin()
    if victim is None:
        return False
    if victim.removals:  # they are needed elsewhere first, and nobody appends here
        victims.abandon(victim)
        return False
    victims.finish(victim)
    return True
