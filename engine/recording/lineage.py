"""What chunks follow which: it puts the head back on a prompt that was seen without."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

LINKS_MAX = 262_144  # chunks that are remembered, about 25 MB; those of prompts long ago are forgotten

_ROOT = -1  # before the first chunk of a prompt


class Lineage:
    """Which chunk comes before which, of prompts seen so far. One thread.

    A server loads what follows the chunks that its device has, and never names those. But whatever the device
    has was computed or loaded for an earlier prompt. So the chunk behind such a head is known to follow it.
    """

    def __init__(self, links_max: int = LINKS_MAX) -> None:
        self._links_max = links_max
        self._before: dict[int, int] = {}  # the least recently seen first

    def whole(self, ids: Sequence[int], first: int) -> list[int] | None:
        """The prompt from its head on; None where that is not known.

        Args:
            ids: neighbouring chunks of the prompt.
            first: the position of the first one, as far as anybody knows.
        """
        head = self._head(ids[0])
        if head is None or (first and len(head) != first) or self._contradicts(ids):
            return None
        whole = [*head, *ids]
        self._note(whole)
        return whole

    def _head(self, chunk: int) -> list[int] | None:
        """What comes before a chunk; nothing where the chunk is new."""
        head: list[int] = []
        before = self._before.get(chunk, _ROOT)
        while before != _ROOT:
            head.append(before)
            if before not in self._before:
                return None
            before = self._before[before]
        return head[::-1]

    def _contradicts(self, ids: Sequence[int]) -> bool:
        """Whether one of them is known to follow another chunk than it does here: they are out of order."""
        return any(self._before.get(chunk, before) != before for before, chunk in pairwise(ids))

    def _note(self, whole: Sequence[int]) -> None:
        for before, chunk in pairwise((_ROOT, *whole)):
            self._before.pop(chunk, None)
            self._before[chunk] = before
        while len(self._before) > self._links_max:
            del self._before[next(iter(self._before))]
