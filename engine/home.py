"""Where an engine lives: one process, and in it the event-loop thread that does its work."""

from __future__ import annotations

import os

from .loop import LoopThread


class Home:
    """The loop of one engine, and the refusal of calls that would wait for it without end. Any thread."""

    def __init__(self, loop: LoopThread) -> None:
        self.loop = loop
        self._pid = os.getpid()

    def is_here(self) -> bool:
        """Say whether this is the engine's process, and none that was forked from it."""
        return os.getpid() == self._pid

    def check_process(self) -> None:
        """Refuse a forked process: of all the engine's threads it has only a copy of their locks.

        Raises:
            RuntimeError: this process was forked from the engine's.
        """
        if not self.is_here():
            raise RuntimeError(
                f"this engine belongs to process {self._pid}, from which this one was forked; open one here"
            )

    def check_may_wait(self) -> None:
        """Refuse whoever must not wait for the loop.

        Raises:
            RuntimeError: this is the loop's own thread, or a forked process.
        """
        self.check_process()
        if self.loop.is_current():
            raise RuntimeError(
                "this is the engine's own thread, which would wait for itself: call it on another thread"
            )
