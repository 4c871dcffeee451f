"""Reports what happens in the log to whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .chunks import Live


class Events:
    """Made before the parts of the log, and passed to all of them, so that what listens can be made later.

    Calls `on_rolled` listeners on the event loop, `on_freed` listeners on the thread that reclaims.
    """

    def __init__(self) -> None:
        # Mutable state: only ever added to.
        self._on_rolled: list[Callable[[], None]] = []
        self._on_freed: list[Callable[[Sequence[Live]], None]] = []

    def on_rolled(self, listener: Callable[[], None]) -> None:
        """Call the listener after each change of the open segment."""
        self._on_rolled.append(listener)

    def on_freed(self, listener: Callable[[Sequence[Live]], None]) -> None:
        """Call the listener with the chunks that were in a segment, once it is free."""
        self._on_freed.append(listener)

    def rolled(self) -> None:
        for listener in self._on_rolled:
            listener()

    def freed(self, chunks: Sequence[Live]) -> None:
        for listener in self._on_freed:
            listener(chunks)
