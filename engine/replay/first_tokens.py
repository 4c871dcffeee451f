"""First tokens in a replay: what is loaded, what is computed, and how long both take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from ..movement.worth import worth


@dataclass(frozen=True, slots=True)
class Speeds:
    """How fast a server is.

    Attributes:
        chunk_tokens: tokens that a chunk stands for.
        tokens_per_s: how fast it computes prompts.
        bytes_per_s: how fast tiers below the pinned one load.
    """

    chunk_tokens: int
    tokens_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class FirstTokenFigures:
    """What loads from below, and computing, did for the first tokens of a trace's requests.

    Attributes:
        loaded_chunks: prompt chunks that came from tiers below the pinned one.
        declined_chunks: those that could have, and were computed.
        computed_chunks: all that were computed, those among them.
        median_s: of the time to load what is loaded, and to compute the rest.
        median_loading_all_s: the same, if everything was loaded that some tier has.
    """

    loaded_chunks: int
    declined_chunks: int
    computed_chunks: int
    median_s: float
    median_loading_all_s: float

    def times(self, chunks_per_key: int) -> FirstTokenFigures:
        """The same, where each chunk stands for several."""
        return replace(
            self,
            loaded_chunks=self.loaded_chunks * chunks_per_key,
            declined_chunks=self.declined_chunks * chunks_per_key,
            computed_chunks=self.computed_chunks * chunks_per_key,
        )


class FirstTokens:
    """Decides for each request as a server does, and adds up what that takes. Nothing waits in a queue."""

    def __init__(self, speeds: Speeds, chunk_bytes: int) -> None:
        self._speeds = speeds
        self._chunk_bytes = chunk_bytes
        # Mutable state:
        self._loaded = self._declined = self._computed = 0
        self._times_s: list[float] = []
        self._loading_all_s: list[float] = []

    def hits(self, is_below: Sequence[bool], prompt_chunks: int) -> int:
        """How many leading chunks a request uses.

        Args:
            is_below: of each leading chunk that some tier has, whether it has no slot.
        """
        first = is_below.index(True) if True in is_below else len(is_below)
        below = sum(is_below)
        used = len(is_below) if self._is_loaded(prompt_chunks - first) else first
        loaded = below if used == len(is_below) else 0
        self._loaded += loaded
        self._declined += below - loaded
        self._computed += prompt_chunks - used
        self._times_s.append(self._takes_s(loaded, prompt_chunks - used))
        self._loading_all_s.append(self._takes_s(below, prompt_chunks - len(is_below)))
        return used

    def figures(self) -> FirstTokenFigures:
        return FirstTokenFigures(
            self._loaded,
            self._declined,
            self._computed,
            round(median(self._times_s), 6),
            round(median(self._loading_all_s), 6),
        )

    def _is_loaded(self, run_chunks: int) -> bool:
        speeds = self._speeds
        return worth(
            run_chunks,
            chunk_bytes=self._chunk_bytes,
            chunk_tokens=speeds.chunk_tokens,
            bytes_per_s=speeds.bytes_per_s,
            tokens_per_s=speeds.tokens_per_s,
        ).is_loaded

    def _takes_s(self, loaded: int, computed: int) -> float:
        speeds = self._speeds
        return (
            loaded * self._chunk_bytes / speeds.bytes_per_s
            + computed * speeds.chunk_tokens / speeds.tokens_per_s
        )
