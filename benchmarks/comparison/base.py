"""The face of every store that is compared: batches of chunks in, batches of chunks out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Request(Protocol):
    """One batch under way."""

    def result(self) -> None:
        """Wait for its end.

        Raises:
            RuntimeError: a chunk of it failed.
        """
        ...


class Store(Protocol):
    """All stores move the same bytes from and to the same memory: a key's chunk lies in its row."""

    name: str

    def store(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request: ...

    def load(self, keys: Sequence[bytes], rows: Sequence[int]) -> Request: ...

    def close(self) -> None: ...
