"""Load or recompute: whether chunks are expected sooner from the tier that has them than from computing them.

A run is what a prompt has only below its slots, from the first such chunk on. It is loaded or computed as a
whole: a server computes everything behind the first chunk that it does not load. Nothing is decided on a rate
that is not known: then the run is loaded, which is also what makes the rate known.

A tier that is read no more is measured no more. So where nothing came from it for `PROBE_EVERY_S`, the head
of the next run, `PROBE_BYTES` of it, is loaded all the same. It counts for twice what was measured before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ...tiers.errors import ConfigError
from .prompts import Prompt
from .rates import MEASURED_BYTES, GivenPrefill, Prefill, TierRate

PROBE_EVERY_S = 30.0  # a minute or two after a drive has recovered it is used again
SHORT_TRY_EVERY_S = 3.0  # a short run says less, and costs less
PROBE_BYTES = 64 << 20  # a drive of 500 MB/s takes 0.13 s for it

EVERYTHING = math.inf


class Computing(NamedTuple):
    """What it takes to compute chunks.

    Attributes:
        chunk_tokens: tokens of a prompt that a chunk stands for.
        prefill: how fast they are computed.
    """

    chunk_tokens: int
    prefill: Prefill


def given_computing(tokens_per_chunk: object, prefill_tokens_per_s: object) -> Computing | None:
    """What a user says of computing: both or nothing.

    Raises:
        ConfigError: one of them is missing, or is no number above zero; the message names it.
    """
    given = {"tokens_per_chunk": tokens_per_chunk, "prefill_tokens_per_s": prefill_tokens_per_s}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    for name in missing:
        raise ConfigError(name, f"missing: {' and '.join(given)} go together")
    for name, value in given.items():
        kind = int if name == "tokens_per_chunk" else (int, float)
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise ConfigError(name, f"should be {what} above zero, not {value!r:.80}")
    assert isinstance(tokens_per_chunk, int)
    assert isinstance(prefill_tokens_per_s, int | float)
    return Computing(tokens_per_chunk, GivenPrefill(prefill_tokens_per_s))


class Worth(NamedTuple):
    """What a run of chunks takes, either way."""

    load_s: float
    compute_s: float

    @property
    def is_loaded(self) -> bool:
        """Whether it is expected sooner from the tier."""
        return self.load_s < self.compute_s


def worth(
    chunks: int,
    *,
    chunk_bytes: int,
    chunk_tokens: int,
    bytes_per_s: float,
    tokens_per_s: float,
    queued_bytes: int = 0,
    busy_s: float = 0.0,
) -> Worth:
    """Estimate a run of chunks from a tier that has other bytes to load before, on a server that is busy."""
    load_s = (queued_bytes + chunks * chunk_bytes) / bytes_per_s
    return Worth(load_s, busy_s + chunks * chunk_tokens / tokens_per_s)


class Advisor:
    """Says how much of a run to load. The chain's lock guards it.

    Attributes:
        rates: of each tier below, by name.
        computing: None where everything is loaded.
    """

    def __init__(
        self,
        rates: Mapping[str, TierRate],
        *,
        chunk_bytes: int,
        computing: Computing | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rates = rates
        self.computing = computing
        self._chunk_bytes = chunk_bytes
        self._clock = clock
        # Mutable state:
        self._tries_s: dict[str, float] = {}  # when each tier was last tried, with a run that can be measured
        self._short_tries_s: dict[str, float] = {}  # and with one that can only show that it is faster
        self._busy_until_s = -math.inf  # with what it was advised to compute

    def lets(self, prompt: Prompt, tier: str, chunks: int | None) -> bool:
        """Say whether a prompt loads one chunk more from below; its first chunk there decides for a tier.

        A no is for all tiers: what lies behind a chunk that is not loaded is computed, too.

        Args:
            tier: which has the chunk.
            chunks: of the prompt from this one on, where that is known.
        """
        if prompt.loads >= 1 and tier not in prompt.advised:
            prompt.advised.add(tier)
            prompt.loads = min(prompt.loads, self.advised(tier, chunks))
        if prompt.loads < 1:
            return False
        prompt.loads -= 1
        return True

    def is_decided(self, prompt: Prompt) -> bool:
        """Whether all tiers have been asked about, or one that says no."""
        return prompt.loads < 1 or len(prompt.advised) == len(self.rates)

    def advised(self, tier: str, chunks: int | None) -> float:
        """How many leading chunks of a run to load; `EVERYTHING` for all.

        Args:
            chunks: of the run; where nobody knows, what is queued before it is left out, either way.
        """
        rate = self.rates[tier]
        if self.computing is None or rate.bytes_per_s is None or self.computing.prefill.tokens_per_s is None:
            return EVERYTHING
        estimate = worth(
            chunks or 1,
            chunk_bytes=self._chunk_bytes,
            chunk_tokens=self.computing.chunk_tokens,
            bytes_per_s=rate.bytes_per_s,
            tokens_per_s=self.computing.prefill.tokens_per_s,
            queued_bytes=rate.queued_bytes if chunks else 0,
            busy_s=max(0.0, self._busy_until_s - self._clock()) if chunks else 0.0,
        )
        if estimate.is_loaded:
            return EVERYTHING
        return max(1, PROBE_BYTES // self._chunk_bytes) if self._may_probe(tier, chunks) else 0

    def computes(self, chunks: int) -> None:
        """A run is computed, as was advised: others that come at the same time are computed after it.

        Else one load would send all that come with it to the server, however fast the tier is.
        """
        if self.computing is not None and self.computing.prefill.tokens_per_s is not None:
            takes_s = chunks * self.computing.chunk_tokens / self.computing.prefill.tokens_per_s
            self._busy_until_s = max(self._busy_until_s, self._clock()) + takes_s

    def rates_per_s(self, pinned: str) -> dict[str, dict[str, int]]:
        """The rates that are known, by tier: of loads, and of computing, which is told beside the slots."""
        known = {
            name: {"load_bytes_per_s": int(rate.bytes_per_s)}
            for name, rate in self.rates.items()
            if rate.bytes_per_s is not None
        }
        tokens_per_s = None if self.computing is None else self.computing.prefill.tokens_per_s
        return (
            known if tokens_per_s is None else {**known, pinned: {"prefill_tokens_per_s": int(tokens_per_s)}}
        )

    def _may_probe(self, tier: str, chunks: int | None) -> bool:
        rate, now_s = self.rates[tier], self._clock()
        is_short = chunks is not None and chunks * self._chunk_bytes < MEASURED_BYTES
        tries_s, every_s = (
            (self._short_tries_s, SHORT_TRY_EVERY_S) if is_short else (self._tries_s, PROBE_EVERY_S)
        )
        if rate.queued_bytes or now_s - rate.measured_s < PROBE_EVERY_S:
            return False
        if now_s - tries_s.get(tier, -math.inf) < every_s:
            return False
        tries_s[tier] = now_s
        rate.doubt()
        return True
