"""What an error of the system means: the device, the path, a right, a limit or a lack of room."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from ...base import Failure
from ...errors import TierError

T = TypeVar("T")

# What a drive says of one bad place: media errors, and checksums of its own that do not match.
BAD_PLACE = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO, errno.EBADMSG})

_MEANING = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), Failure.NO_SPACE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK), Failure.NO_RESOURCES),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG), Failure.NOT_ALLOWED),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE), Failure.GONE),
}
NOT_OF_THE_FILE = frozenset({Failure.NO_RESOURCES, Failure.NOT_ALLOWED, Failure.GONE})
"""What no other file of the store would fare better with."""


def failure_of(error: BaseException) -> Failure:
    """What failed; everything that has no other name is the device."""
    if isinstance(error, MemoryError):
        return Failure.NO_RESOURCES
    if isinstance(error, TierError):
        return error.failure
    code = error.errno if isinstance(error, OSError) else None
    return Failure.IO_ERROR if code is None else _MEANING.get(code, Failure.IO_ERROR)


class LeftOut:
    """Leaves out files that cannot be opened, as long as any other will do. For one decision, on one thread.

    A bad inode, or a file that somebody has made immutable, must not stop a store that has others.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._first: OSError | None = None

    def tried(self, call: Callable[[], T | None]) -> T | None:
        """What the call returns, None where its file is refused.

        Raises:
            OSError: no other file would fare better.
        """
        try:
            return call()
        except OSError as error:
            if failure_of(error) is Failure.NO_RESOURCES:
                raise
            if self._first is None:
                self._first = error
                self._tell(f"left out: {error}")
            return None

    def raise_first(self) -> None:
        """Say why none was found, where one was left out.

        Raises:
            OSError: one was.
        """
        if self._first is not None:
            raise self._first
