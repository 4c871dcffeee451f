"""A store as its checkpoint says it was: for tools that cannot reach the index that is in use.

Nothing of the store is changed or locked: it may lie on a read-only mount, or be in use in another container.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from ...errors import TierUnavailable
from ..index.environment import Index
from ..index.memory import SHARED_MEMORY
from ..io.files import Files
from .catchup import CatchUp
from .checkpoint import restore_checkpoint
from .directory import StoreDirectory, look_only
from .home import is_last_of
from .mark import read_mark
from .opening import Store


class Glance(NamedTuple):
    """What a checkpoint shows.

    Attributes:
        store: as it was; its index is a copy, its files are as they are now.
        made_s: when the checkpoint was made, in seconds since 1970.
        is_current: whether nobody has used the store since.
    """

    store: Store
    made_s: int
    is_current: bool


@contextmanager
def glance(files: Files, root: Path, place: Path = SHARED_MEMORY) -> Iterator[Glance]:
    """The store as its checkpoint shows it.

    Raises:
        TierUnavailable: there is no checkpoint that can be read.
    """
    with ExitStack() as undo:
        directory: StoreDirectory = look_only(files, root)
        undo.callback(directory.close)
        # Gone once it is open, so that a tool that is killed leaves nothing in shared memory.
        with tempfile.TemporaryDirectory(prefix="kvtier-glance-", dir=place) as folder:
            footer = restore_checkpoint(directory, Path(folder, "data.mdb"))
            if footer is None:
                raise TierUnavailable("nvme", f"{root} has no checkpoint that could be looked at instead")
            index = Index.open(Path(folder), alone=True)
            undo.callback(index.close)
        is_current = is_last_of(read_mark(root), directory, footer)
        yield Glance(Store(directory, index, CatchUp(directory, index)), footer.made_s, is_current)
