"""Whether the store's directory is still there. Once it is gone, the tier is given up until a restart.

Made anew, it would be another store: the index, the locks and the segments that other servers have open are
those of the removed one, and whoever removed a directory under its servers may do it again.
"""

from __future__ import annotations

import logging
import threading

from ..errors import TierError
from .store.directory import StoreDirectory

logger = logging.getLogger(__name__)


class Presence:
    """Looks for the directory, and says once when it is gone. `look` blocks; any thread.

    Attributes:
        is_gone: whether it was seen to be gone; never taken back.
    """

    def __init__(self, directory: StoreDirectory) -> None:
        self._directory = directory
        self._says = threading.Lock()  # two that look at once both see that it is gone; one of them says so
        self.is_gone = False

    def look(self) -> None:
        """See whether the directory is still there. Where nobody can say, it is taken to be."""
        if self.is_gone or self._directory.is_there():
            return
        with self._says:
            is_news, self.is_gone = not self.is_gone, True
        if is_news:
            logger.error("%s", self.error())

    def error(self) -> TierError:
        root = self._directory.root
        message = f"{root} was removed while it was in use; nothing is kept or found there until a restart"
        return TierError("nvme", message)
