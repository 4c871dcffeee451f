"""The namespace of a store under which a tier keeps and finds its chunks."""

from __future__ import annotations

from collections.abc import Sequence

from ..base import ChunkKey
from ..errors import TierError
from .format.checksum import ChunkChecksum
from .index.environment import Index
from .index.records import Extent, Namespace
from .store.namespaces import Identity

_NO_RECORD = Namespace(0, 0, 0, 0, 0, 0)


class View:
    """Looks keys up in the namespace. Any thread; `enter` on the event loop.

    Attributes:
        identity: what the namespace stands for.
        digest: the namespace's name in the index.
        checksum: that of its chunks.
    """

    def __init__(self, index: Index, identity: Identity) -> None:
        self._index = index
        self.enter(identity)

    def enter(self, identity: Identity) -> None:
        """Keep and find chunks under this identity from now on."""
        self.identity = identity
        self.digest = identity.digest
        self.checksum = ChunkChecksum(self.digest)

    def has(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """Whether the index has each key.

        Raises:
            TierError: it cannot say.
        """
        return self._index.has(self.digest, keys)

    def find(self, keys: Sequence[ChunkKey]) -> tuple[int, list[Extent | None]]:
        """The scope in force and each key's extent, None where it has none.

        Raises:
            TierError: the index cannot say.
        """
        return self._index.find(self.digest, keys)

    def scope(self) -> int:
        """The scope in force, 0 where there is none or the index cannot say."""
        try:
            return self._index.scope_of(self.digest)
        except TierError:
            return 0

    def record(self) -> Namespace:
        """The namespace's record, all zeroes where there is none or the index cannot say."""
        try:
            with self._index.read() as txn:
                return txn.namespace(self.digest) or _NO_RECORD
        except TierError:
            return _NO_RECORD
