"""What an error of the system means: the device, the path, a right, a limit or a lack of room."""

from __future__ import annotations

import errno

from ...base import Failure
from ...errors import TierError

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
