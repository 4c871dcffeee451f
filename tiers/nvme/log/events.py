"""Reports what happens in the log to whoever listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from .chunks import Live

logger = logging.getLogger(__name__)


class Events:
    """Made before the parts of the log, and passed to all of them, so that what listens can be made later.

    Calls `on_rolled` listeners on the event loop, `on_freed` listeners on the thread that reclaims,
    `on_failed` listeners on any.
    """

    def __init__(self) -> None:
        # Mutable state: only ever added to.
        self._on_rolled: list[Callable[[], None]] = []
        self._on_freed: list[Callable[[Sequence[Live]], None]] = []
        self._on_failed: list[Callable[[str], None]] = []

    def on_rolled(self, listener: Callable[[], None]) -> None:
        """Call the listener after each change of the open segment."""
        self._on_rolled.append(listener)

    def on_failed(self, listener: Callable[[str], None]) -> None:
        """Call the listener, on any thread, with what has failed."""
        self._on_failed.append(listener)

    def on_freed(self, listener: Callable[[Sequence[Live]], None]) -> None:
        """Call the listener with the chunks that were in a segment, once it is free."""
        self._on_freed.append(listener)

    def rolled(self) -> None:
        for listener in self._on_rolled:
            listener()

    def failed(self, message: str) -> None:
        if not self._on_failed:
            logger.warning("nvme: %s", message)  # of a tool, which ends soon
        for listener in self._on_failed:
            listener(message)

    def freed(self, chunks: Sequence[Live]) -> None:
        for listener in self._on_freed:
            listener(chunks)
