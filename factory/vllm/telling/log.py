"""kvtier's lines in the server's log: what the tiers hold at start, and what they saved, once a minute."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

from ....engine.chain import ChainStats
from ...text.units import format_size
from .facts import TierFacts
from .saved import saved

LINE_EVERY_S = 60.0


def server_logger() -> logging.Logger:
    """A logger of vLLM's, so that the lines look like the server's and go where they go."""
    from vllm.logger import init_logger

    logger: logging.Logger = init_logger("vllm.kvtier")
    return logger


def start_line(tiers: Sequence[TierFacts], found: ChainStats) -> str:
    """What was started, for people."""
    any_tier = tiers[0]
    return " | ".join(
        [
            f"kvtier: {format_size(any_tier.token_bytes)} a token",
            f"{format_size(any_tier.chunk_bytes)} a chunk of {any_tier.chunk_tokens:.4g} tokens",
            *(tier.line(found.tiers[tier.tier]) for tier in tiers),
            f"namespace {any_tier.namespace}",
        ]
    )


class SavedLines:
    """Says once a minute what was saved, if anything happened. Any thread.

    Args:
        stats: the chain's numbers.
        chunk_tokens: how many tokens a chunk stands for.
    """

    def __init__(self, stats: Callable[[], ChainStats], chunk_tokens: float, logger: logging.Logger) -> None:
        self._stats = stats
        self._chunk_tokens = chunk_tokens
        self._logger = logger
        self._lock = threading.Lock()
        # Under the lock:
        self._said = stats()

    async def run(self) -> None:
        """Say it every minute, until cancelled."""
        while True:
            await asyncio.sleep(LINE_EVERY_S)
            self.say()

    def say(self) -> None:
        """Say what has happened since the last time."""
        with self._lock:
            before, self._said = self._said, self._stats()
            line = saved(before, self._said, self._chunk_tokens)
        if line:
            self._logger.info("kvtier: %s", line)
