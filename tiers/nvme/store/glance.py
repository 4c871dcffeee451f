"""A store as its checkpoint says it was: for tools that cannot reach the index that is in use.

Nothing of the store is changed or locked: it may lie on a read-only mount, or be in use in another container.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...errors import TierUnavailable
from ..index.environment import Index
from ..index.memory import SHARED_MEMORY
from ..io.files import Files
from .catchup import CatchUp
from .checkpoint import restore_checkpoint
from .directory import StoreDirectory, look_only
from .opening import Store


@contextmanager
def glance(files: Files, root: Path, place: Path = SHARED_MEMORY) -> Iterator[tuple[Store, int]]:
    """The store, and when its checkpoint was made, in seconds since 1970.

    Raises:
        TierUnavailable: there is no checkpoint that can be read.
    """
    with ExitStack() as undo:
        directory: StoreDirectory = look_only(files, root)
        undo.callback(directory.close)
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="kvtier-glance-", dir=place)))
        footer = restore_checkpoint(directory, folder / "data.mdb")
        if footer is None:
            raise TierUnavailable("nvme", f"{root} has no checkpoint that could be looked at instead")
        index = Index.open(folder, alone=True)
        undo.callback(index.close)
        yield Store(directory, index, CatchUp(directory, index)), footer.made_s
